//! Scaled dot-product attention.

use tch::{Kind, TchError, Tensor};

use super::upcasts;

/// `softmax(query · keyᵀ / √E) · value` in one fused pass: query `[B, H, L, E]`, key and value `[B,
/// H, M, E]` to `[B, H, L, E]`. A query ignores the keys for which the mask, a tensor of booleans,
/// is false; with `causal` each query sees itself and the keys before it.
pub(crate) fn attention(
    query_BHLE: &Tensor,
    key_BHME: &Tensor,
    value_BHME: &Tensor,
    mask: Option<&Tensor>,
    causal: bool,
) -> Result<Tensor, TchError> {
    if upcasts(query_BHLE) {
        let [query, key, value] =
            [query_BHLE, key_BHME, value_BHME].map(|tensor| tensor.f_to_kind(Kind::Float));
        return attention(&query?, &key?, &value?, mask, causal)?.f_to_kind(Kind::BFloat16);
    }
    Tensor::f_scaled_dot_product_attention(
        query_BHLE, key_BHME, value_BHME, mask, 0.0, causal, None, false,
    )
}
