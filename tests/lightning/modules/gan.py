"""A GAN, by hand, as in Lightning's examples; the noise comes with the batch."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.lightning.modules.parts import digits


class GAN(pl.LightningModule):
    def __init__(self, latent: int = 4, lr: float = 1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(latent, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU()
        )
        self.paint = nn.Linear(16, 64)
        self.discriminator = nn.Sequential(nn.Linear(64, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def forward(self, z):
        return torch.sigmoid(self.paint(self.generator(z)))

    def adversarial_loss(self, y_hat, y):
        return F.binary_cross_entropy_with_logits(y_hat, y)

    def training_step(self, batch):
        imgs, z = batch
        optimizer_g, optimizer_d = self.optimizers()

        self.toggle_optimizer(optimizer_g)
        valid = torch.ones(imgs.size(0), 1).type_as(imgs)
        g_loss = self.adversarial_loss(self.discriminator(self(z)), valid)
        self.log("g_loss", g_loss, prog_bar=True)
        self.manual_backward(g_loss)
        optimizer_g.step()
        optimizer_g.zero_grad()
        self.untoggle_optimizer(optimizer_g)

        with self.toggled_optimizer(optimizer_d):
            real_loss = self.adversarial_loss(self.discriminator(imgs), valid)
            fake = torch.zeros_like(valid)
            fake_loss = self.adversarial_loss(self.discriminator(self(z).detach()), fake)
            d_loss = (real_loss + fake_loss) / 2
            self.log("d_loss", d_loss, prog_bar=True)
            self.manual_backward(d_loss)
            optimizer_d.step()
            optimizer_d.zero_grad()

    def configure_optimizers(self):
        painters = [*self.generator.parameters(), *self.paint.parameters()]
        opt_g = torch.optim.Adam(painters, lr=self.hparams.lr, betas=(0.5, 0.999))
        opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=self.hparams.lr)
        return [opt_g, opt_d], []

    def train_dataloader(self):
        x, _ = digits()
        noise = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x[:120], noise), batch_size=32)
