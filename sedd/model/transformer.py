"""The denoiser, top to bottom: noised tokens and a condition in, logits over the bins out.

Genes are grouped into tokens of the transformer. What is known of a gene (its noised token, what
the control cells of the type show) enters the stream by a small linear map of that gene's own.
adaLN-Zero blocks (DiT, arXiv:2212.09748) are modulated by the mask fraction, the perturbation,
the depth, the batch (where batches are told) and a summary of the visible genes. What leaves is a
*correction*: to the log prior of the type, tilted by the mean effect over the types
(`sedd.data.effects`), the network adds coefficients on an ordinal basis. They are zero before
training, so that an untrained model says "the control cells, changed as those of other types were".

Shape letters: batch (cells), genes, groups (of genes), dim (width of the stream), bins, rank.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sedd.model.config import ModelConfig
from sedd.model.embeddings import (
    LabelEmbedding,
    PerturbationEmbedding,
    ScalarEmbedding,
    TargetFlag,
)
from sedd.model.inputs import Condition, Contexts, Initial, Sizes

TOKEN_FEATURES = 5
"""Per gene: is masked, is zero, log1p of the value, its square, one."""

CONTROL_FEATURES = 3
"""Per gene and type: mean and spread of log1p expression, detection rate."""


class Denoiser(nn.Module):
    """Logits over the bins of each gene, given the visible genes and the condition."""

    value_features: Tensor
    basis: Tensor
    levels: Tensor
    direction: Tensor
    gene_mean: Tensor
    gene_std: Tensor
    depth_scale: Tensor

    def __init__(self, config: ModelConfig, sizes: Sizes, initial: Initial) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        dim, rank = config.width, initial.basis.shape[0]
        self.padding = -sizes.num_genes % config.genes_per_token
        groups = (sizes.num_genes + self.padding) // config.genes_per_token
        per_group = config.genes_per_token

        self.register_buffer("basis", initial.basis.clone())
        self.register_buffer("levels", initial.levels.clone())
        self.register_buffer("direction", initial.direction.clone())
        self.register_buffer("value_features", _value_features(initial.levels))
        self.register_buffer("gene_mean", initial.gene_mean.clone())
        self.register_buffer("gene_std", initial.gene_std.clone())
        self.register_buffer(
            "depth_scale", torch.tensor([initial.depth_mean, max(initial.depth_std, 1e-3)])
        )

        self.token_map = _group_map(groups, per_group * TOKEN_FEATURES, dim)
        if config.control_features:
            self.control_map = _group_map(groups, per_group * CONTROL_FEATURES, dim)
        self.perturbation = PerturbationEmbedding(
            initial.parts,
            dim,
            initial.perturbation_vectors,
            can_be_hidden=config.condition_dropout > 0,
        )
        if (initial.targets >= 0).any():
            self.target = TargetFlag(initial.targets, per_group, dim, rank)
        self.depth = ScalarEmbedding(dim)
        if config.time_conditioning:
            self.mask_fraction = ScalarEmbedding(dim)
        if config.cell_type_label_dropout < 1:
            vectors = initial.cell_type_vectors
            if vectors is not None:  # the last label is "not told"
                vectors = torch.cat([vectors, vectors.mean(0, keepdim=True)])
            self.cell_type_label = LabelEmbedding(sizes.num_cell_types + 1, dim, vectors)
        if sizes.num_batches:  # the last is "not told"
            unsaid = torch.zeros(sizes.num_batches + 1, dim)
            self.batch_label = nn.Embedding.from_pretrained(unsaid, freeze=False)
        if config.token_encoder:
            self.components = nn.Parameter(initial.components.clone())
            self.encoder = nn.Sequential(
                nn.Linear(config.token_encoder, dim), nn.SiLU(), nn.Linear(dim, 2 * dim)
            )
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.final_modulation = nn.Linear(dim, 2 * dim)
        self.head = nn.Parameter(torch.zeros(groups, dim, per_group * rank))
        self.head_bias = nn.Parameter(torch.zeros(sizes.num_genes, rank))
        nn.init.zeros_(self.final_modulation.weight)
        nn.init.zeros_(self.final_modulation.bias)

    def forward(
        self,
        tokens: Int[Tensor, "batch genes"],
        condition: Condition,
        contexts: Contexts,
        genes: Int[Tensor, "batch some"] | None = None,
    ) -> Float[Tensor, "batch some bins"]:
        """Logits at `genes` (all of them if None); MASK is not among the bins."""
        visible = tokens != self.sizes.num_bins
        summary, shift = self._encode_visible(tokens, visible)
        stream = self._embed_genes(tokens, condition, contexts) + shift[:, None]
        if self.perturbation.parts.shape[1] > 1:  # genes attend to the parts of combinations
            stream = torch.cat([stream, self.perturbation.each(condition.perturbation)], dim=1)
        conditioning = functional.silu(self._condition(visible, condition) + summary)
        for block in self.blocks:
            stream = block(stream, conditioning)
        scale, offset = self.final_modulation(conditioning).chunk(2, dim=-1)
        stream = modulate(functional.layer_norm(stream, stream.shape[-1:]), scale, offset)
        groups = self.head.shape[0]
        return self._logits(stream[:, :groups], condition, contexts, genes)

    def _embed_genes(
        self, tokens: Int[Tensor, "batch genes"], condition: Condition, contexts: Contexts
    ) -> Float[Tensor, "batch groups dim"]:
        values = self._grouped(self.value_features[tokens])
        stream = torch.einsum("ngf,gfd->ngd", values, self.token_map)
        if self.config.control_features:
            shown = torch.einsum("tgf,gfd->tgd", self._grouped(contexts.features), self.control_map)
            stream = stream + shown[condition.cell_type]
        if hasattr(self, "target"):
            stream = self.target.on_tokens(stream, condition.perturbation)
        return stream

    def _grouped(
        self, features: Float[Tensor, "batch genes features"]
    ) -> Float[Tensor, "batch groups grouped_features"]:
        padded = functional.pad(features, (0, 0, 0, self.padding)) if self.padding else features
        return padded.flatten(1).unflatten(1, (self.token_map.shape[0], -1))

    def _condition(self, visible: Tensor, condition: Condition) -> Float[Tensor, "batch dim"]:
        mean, std = self.depth_scale
        embedded = self.perturbation(condition.perturbation)
        embedded = embedded + self.depth((condition.log_depth - mean) / std)
        if self.config.time_conditioning:
            embedded = embedded + self.mask_fraction(1 - visible.to(mean.dtype).mean(1))
        if self.config.cell_type_label_dropout < 1:
            embedded = embedded + self.cell_type_label(condition.label)
        if self.sizes.num_batches:
            embedded = embedded + self.batch_label(condition.batch)
        return embedded

    def _encode_visible(
        self, tokens: Tensor, visible: Tensor
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
        """Summary of the visible genes for the modulation, and a shift of every token."""
        if not self.config.token_encoder:
            nothing = self.final_modulation.bias.new_zeros(len(tokens), self.config.width)
            return nothing, nothing
        level = self.levels[tokens.clamp(max=self.sizes.num_bins - 1)]
        standardised = torch.where(visible, (level - self.gene_mean) / self.gene_std, 0.0)
        factors = standardised @ self.components
        factors = factors / visible.to(factors.dtype).sum(1, keepdim=True).add(1).sqrt()
        summary, shift = self.encoder(factors).chunk(2, dim=-1)
        return summary, shift

    def _logits(
        self,
        stream: Float[Tensor, "batch groups dim"],
        condition: Condition,
        contexts: Contexts,
        genes: Int[Tensor, "batch some"] | None,
    ) -> Float[Tensor, "batch some bins"]:
        rank, num_genes = self.basis.shape[0], self.sizes.num_genes
        coefficients = torch.einsum("ngd,gdk->ngk", stream, self.head)
        coefficients = coefficients.flatten(1).unflatten(1, (-1, rank))[:, :num_genes]
        coefficients = coefficients + self.head_bias
        if hasattr(self, "target"):
            coefficients = self.target.on_genes(coefficients, condition.perturbation)
        tilt = contexts.tilt_of(condition)
        coefficients = torch.cat([coefficients, tilt[..., None]], dim=-1)
        basis = torch.cat([self.basis, self.direction[None]])
        if genes is None:
            return contexts.log_prior[condition.cell_type] + coefficients @ basis
        coefficients = coefficients.gather(1, genes[..., None].expand(-1, -1, rank + 1))
        prior = contexts.log_prior[condition.cell_type[:, None], genes]
        return prior + coefficients @ basis


class Block(nn.Module):
    """Attention and feed-forward, each shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.modulation = nn.Linear(dim, 6 * dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attended = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim)
        )
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, stream: Float[Tensor, "batch groups dim"], conditioning: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch groups dim"]:
        """One step of the residual stream."""
        modulation = self.modulation(conditioning).chunk(6, dim=-1)
        scale, offset, gate, wide_scale, wide_offset, wide_gate = modulation
        normed = modulate(functional.layer_norm(stream, stream.shape[-1:]), scale, offset)
        stream = stream + gate[:, None] * self.dropout(self._attend(normed))
        normed = modulate(functional.layer_norm(stream, stream.shape[-1:]), wide_scale, wide_offset)
        return stream + wide_gate[:, None] * self.dropout(self.feed_forward(normed))

    def _attend(
        self, stream: Float[Tensor, "batch groups dim"]
    ) -> Float[Tensor, "batch groups dim"]:
        heads = self.qkv(stream).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.attended(mixed.transpose(1, 2).flatten(2))


def modulate(
    normed: Float[Tensor, "batch groups dim"],
    scale: Float[Tensor, "batch dim"],
    offset: Float[Tensor, "batch dim"],
) -> Float[Tensor, "batch groups dim"]:
    """Normed * (1 + scale) + offset, one scale and offset per cell."""
    return torch.addcmul(offset[:, None], normed, 1 + scale[:, None])


def _group_map(groups: int, features: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(groups, features, dim) * features**-0.5)


def _value_features(levels: Float[Tensor, " bins"]) -> Float[Tensor, "states 5"]:
    """Features of every state of a gene; the last state is MASK."""
    scaled = levels / levels.max().clamp(min=1e-6)
    visible = torch.stack(
        [torch.zeros_like(scaled), (levels == levels.min()).float(), scaled, scaled**2], dim=1
    )
    masked = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    states = torch.cat([visible, masked])
    return torch.cat([states, torch.ones(len(states), 1)], dim=1)
