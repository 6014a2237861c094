"""The network: one model that trains, scores and generates.

>>> model = Transformer(ModelConfig.named("debug-moe"))             # random weights, float32
>>> logits = model(tokens)                                          # [B, T] -> [B, T, vocab]
>>> losses = model.loss(tokens); losses.total.backward()             # language model, MTP and balance
>>> cache = LatentCache(model.config, batch=1, capacity=512, dtype=torch.float32)
>>> logits = model(prompt, cache=cache)                             # prefill; then one token at a time
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepwell.errors import UsageError
from deepwell.lm.model.attention import Form, MultiHeadLatentAttention, Sight
from deepwell.lm.model.cache import LatentCache
from deepwell.lm.model.config import DynamicGating, ModelConfig
from deepwell.lm.model.loss import Losses, Whole, language_model_losses
from deepwell.lm.model.moe import MLP, Gate, MixtureOfExperts, Routing
from deepwell.lm.model.products import Linear, linear
from deepwell.lm.model.rope import Rope
from deepwell.lm.model.routes import Routes
from deepwell.lm.model.rowwise import RMSNorm

Recompute = Literal["none", "attention", "blocks"]
"""Nothing; up-projections and attention (V3 section 3.2.3; norms are in any case); whole layers."""


class Block(nn.Module):
    """One decoder layer: attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, device=device, dtype=dtype)
        self.self_attn = MultiHeadLatentAttention(config, device=device, dtype=dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, device=device, dtype=dtype)
        self.mlp: MLP | MixtureOfExperts
        if config.is_moe_layer(layer):
            self.mlp = MixtureOfExperts(config, device=device, dtype=dtype)
        else:
            self.mlp = MLP(
                config.hidden_size, config.intermediate_size, bias=config.mlp_bias, device=device, dtype=dtype
            )

    def forward(self, x: Tensor, sight: Sight, given: Tensor | None = None) -> tuple[Tensor, Routing | None]:
        """``x`` [B, T, hidden] -> the same shape, and where its tokens went if the layer mixes experts."""
        x = x + self.self_attn(self.input_layernorm(x), sight, self.layer)
        normed = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MixtureOfExperts):
            out, routing = self.mlp(normed, given)
            return x + out, routing
        return x + self.mlp(normed), None


class MTPModule(nn.Module):
    """One depth of multi-token prediction (V3 section 2.2): the stream and the next token's embedding, one block more.

    ``eh_proj`` takes the embedding first and the hidden state second, as in DeepSeek's files and against the paper's
    text. Embedding and head are the network's own.
    """

    def __init__(
        self,
        config: ModelConfig,
        depth: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(hidden, eps, device=device, dtype=dtype)
        self.hnorm = RMSNorm(hidden, eps, device=device, dtype=dtype)
        self.eh_proj = Linear(2 * hidden, hidden, bias=False, device=device, dtype=dtype)
        self.block = Block(config, config.num_hidden_layers + depth, device=device, dtype=dtype)
        self.norm = RMSNorm(hidden, eps, device=device, dtype=dtype)

    def forward(
        self, hidden: Tensor, embedded: Tensor, sight: Sight, given: Tensor | None = None
    ) -> tuple[Tensor, Routing | None]:
        """``hidden`` [B, T, h] of the depth before, ``embedded`` [B, T, h] of the token after -> stream, not normed."""
        x = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1))
        return self.block(x, sight, given)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """MLA with dense or mixture-of-experts layers and optional multi-token prediction.

    Args:
        config: The shape.
        device: Where weights are made; "meta" makes shapes only.
        dtype: Of the weights; float32 if not given. The router's bias is float32 in any case.

    Weights are random (``initializer_range``) until a checkpoint fills them: see ``deepwell.lm.load``.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        """Of activations, where it is another than that of the weights: bf16 over float32 master weights."""
        self.recompute: Recompute = "none"
        """What a backward pass computes again in place of having it kept."""
        self.rope = Rope(config)
        # Given its weight, an Embedding does not draw one; drawing on the meta device imports all of torch._dynamo.
        table = torch.empty(config.vocab_size, config.hidden_size, device="meta", dtype=dtype)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=table)
        made: dict[str, Any] = {"device": torch.device("meta"), "dtype": dtype}
        self.layers = nn.ModuleList(Block(config, layer, **made) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, **made)
        self.mtp = nn.ModuleList(MTPModule(config, depth, **made) for depth in range(config.num_nextn_predict_layers))
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False, **made)
        if torch.device(device or torch.get_default_device()).type != "meta":
            self.to_empty(device=device or torch.get_default_device())
            self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal with ``initializer_range`` for matrices, ones for norms, zeros for biases (V3 section 4.2)."""
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)
        for buffer in self.buffers():
            buffer.zero_()

    # ---- forward ----

    def forward(
        self,
        tokens: Tensor,
        *,
        cache: LatentCache | None = None,
        documents: Tensor | None = None,
        routes: Routes | None = None,
        form: Form | None = None,
    ) -> Tensor:
        """Logits of the token after each: ``tokens`` [B, T] int64 -> [B, T, vocab] in the weights' dtype.

        Args:
            tokens: Token ids.
            cache: Continue behind what it holds, and append to it.
            documents: [B, T] ids of packed documents; tokens of different documents do not see each other, and
                positions start anew at each border. Not together with a cache.
            routes: Record the experts taken, or follow those recorded.
            form: Force attention to be "absorbed" or "decompressed"; by default the cheaper one is taken.
        """
        return self.head(self.hidden(tokens, cache=cache, documents=documents, routes=routes, form=form))

    def hidden(
        self,
        tokens: Tensor,
        *,
        cache: LatentCache | None = None,
        documents: Tensor | None = None,
        routes: Routes | None = None,
        form: Form | None = None,
    ) -> Tensor:
        """The normed states that the head reads: [B, T] -> [B, T, hidden]. Arguments as for calling the model."""
        sight = self.sight(tokens, cache=cache, documents=documents, form=form)
        return self._stream(tokens, sight, routes)[0]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits from normed states: [..., hidden] -> [..., vocab]."""
        return linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """The output matrix [vocab, hidden]: the embedding's own where the two are tied."""
        return self.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def sight(
        self,
        tokens: Tensor,
        *,
        cache: LatentCache | None = None,
        documents: Tensor | None = None,
        form: Form | None = None,
    ) -> Sight:
        """Angles and mask for ``tokens`` [B, T] behind what the cache holds.

        Raises:
            UsageError: Packed documents together with a cache, or documents of another shape than the tokens.
        """
        count, past = tokens.shape[1], 0 if cache is None else cache.length
        if documents is not None and (cache is not None or documents.shape != tokens.shape):
            raise UsageError("documents are given for every token of a pass without a cache, in the tokens' shape")
        place = torch.arange(past, past + count, device=tokens.device)[None]
        mask = None
        seen = torch.arange(past + count, device=tokens.device)
        window = self.config.sliding_window
        if documents is not None or (past and count > 1) or (window is not None and past + count > window):
            mask = (seen <= place[..., None])[:, None]
            if window is not None:
                mask = mask & (seen > place[..., None] - window)[:, None]
        if documents is not None:
            same = documents[:, :, None] == documents[:, None, :]
            mask = mask & same[:, None]  # type: ignore[operator]
            starts = torch.ones_like(documents, dtype=torch.bool)
            starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
            place = place - torch.where(starts, place, 0).cummax(-1).values
        cos, sin = self.rope(place, past + count)
        recompute = self.recompute == "attention"
        return Sight(cos=cos, sin=sin, mask=mask, cache=cache, form=form, recompute=recompute)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings of ``tokens`` [B, T], in the dtype of activations: [B, T, hidden]."""
        embedded: Tensor = self.embed_tokens(tokens)
        return embedded if self.compute_dtype is None else embedded.to(self.compute_dtype)

    def _stream(self, tokens: Tensor, sight: Sight, routes: Routes | None) -> tuple[Tensor, list[Tensor]]:
        """Through all layers and the last norm; also the balance losses of the layers that mix experts."""
        x = self.embed(tokens)
        balance: list[Tensor] = []
        for block in self.layers:
            x, routing = self.run(cast(Block, block), x, sight, routes, again=self.recompute == "blocks")
            if routing is not None and routing.balance is not None:
                balance.append(routing.balance)
        if sight.cache is not None:
            sight.cache.advance(tokens.shape[1])
        return self.norm(x), balance

    @staticmethod
    def run(
        block: Block, x: Tensor, sight: Sight, routes: Routes | None, *, again: bool = False
    ) -> tuple[Tensor, Routing | None]:
        """One layer, its routes followed or recorded; ``again``: computed once more in the backward pass."""
        follows = routes is not None and isinstance(block.mlp, MixtureOfExperts)
        given = routes.given(block.layer, x.shape[0] * x.shape[1]) if routes is not None and follows else None
        out: tuple[Tensor, Routing | None]
        if again and torch.is_grad_enabled():
            out = checkpoint(block, x, sight, given, use_reentrant=False)
        else:
            out = block(x, sight, given)
        if routes is not None and follows and out[1] is not None:
            routes.record(block.layer, out[1].experts)
        return out

    # ---- learning ----

    def loss(
        self,
        tokens: Tensor,
        labels: Tensor | None = None,
        *,
        documents: Tensor | None = None,
        routes: Routes | None = None,
        mtp_weight: float = 0.3,
        whole: Whole | None = None,
    ) -> Losses:
        """Cross-entropy of the next token, of those further on (MTP), and the balance of experts.

        Args:
            tokens: [B, T] int64.
            labels: [B, T], the tokens to be predicted at their own place; -100 is not predicted. By default ``tokens``.
            documents: As for calling the model. No prediction crosses a border.
            routes: As for calling the model; the MTP modules choose for themselves.
            mtp_weight: Lambda of V3 section 2.2: 0.3 for the first two thirds of its pretraining, 0.1 after.
            whole: The batch that these rows are a part of. Losses are then this part's share of the whole's, so that
                those of all parts sum to it. By default the rows are the whole.

        Returns:
            Losses, whose ``total`` is to be differentiated. It is 0, and differentiable, where every label is masked.
        """
        sight = self.sight(tokens, documents=documents)
        hidden, balance = self._stream(tokens, sight, routes)
        return language_model_losses(self, tokens, labels, documents, hidden, balance, mtp_weight, whole)

    def expert_loads(self) -> Tensor:
        """Tokens that each expert got in training since the last reset: int64 [layers with experts, E], MTP last."""
        return torch.stack([gate.expert_load for gate in self.gates()])

    def reset_expert_loads(self) -> None:
        """Start to count anew, as after every optimizer step."""
        for gate in self.gates():
            gate.expert_load.zero_()

    def gates(self) -> list[Gate]:
        """The gates of all layers that mix experts, in order, MTP modules last."""
        return [module for module in self.modules() if isinstance(module, Gate)]

    # ---- using ----

    def draft(
        self, hidden: Tensor, tokens: Tensor, *, depth: int = 0, cache: LatentCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of multi-token prediction as a draft model.

        Args:
            hidden: [B, T, hidden]; for depth 0 what ``hidden`` returns, for deeper ones the second value of this.
            tokens: [B, T], the token that follows each state: known, or just sampled.
            depth: Which module.
            cache: One made with ``mtp=True``. The module's own rows stand at the same places as the network's, so it is
                called before the network moves on, with ``cache.length`` at the first of these states.

        Returns:
            Logits [B, T, vocab] of the token after ``tokens``, and the states for the next depth.

        Raises:
            UsageError: The network has no such module.
        """
        if depth >= len(self.mtp):
            raise UsageError(
                f"the network has {len(self.mtp)} modules of multi-token prediction, and {depth} was asked for"
            )
        module = self.mtp_modules()[depth]
        sight = self.sight(tokens, cache=cache)
        out, _ = module(hidden, self.embed(tokens), sight)
        return self.head(module.norm(out)), out

    def mtp_modules(self) -> list[MTPModule]:
        """The modules of multi-token prediction, nearest first."""
        return [cast(MTPModule, module) for module in self.mtp]

    def set_dynamic_gating(self, gating: DynamicGating | None) -> None:
        """Let each token take as many experts as it needs, or (None) the fixed number again. Weights do not change."""
        self.config = self.config.replace(dynamic_gating=gating)
        for gate in self.gates():
            gate.config = self.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.embed_tokens.weight.dtype
