"""The test kit: one check for each law, and one for all, to call on your own stages."""

from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.testing.agreement import check_compiles as check_compiles
from fnloop.testing.agreement import check_layouts as check_layouts
from fnloop.testing.agreement import check_vmaps as check_vmaps
from fnloop.testing.comparison import LawError as LawError
from fnloop.testing.derivatives import check_differentiable as check_differentiable
from fnloop.testing.every_law import check_laws as check_laws
from fnloop.testing.laws import check_accumulates as check_accumulates
from fnloop.testing.laws import check_effects as check_effects
from fnloop.testing.laws import check_init as check_init
from fnloop.testing.laws import check_repeatable as check_repeatable
from fnloop.testing.laws import check_resumes as check_resumes
from fnloop.testing.laws import check_skips as check_skips
from fnloop.testing.laws import check_stable as check_stable
from fnloop.testing.purity import check_pure as check_pure

__getattr__ = _suggesting(__name__)
