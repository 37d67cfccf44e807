use super::change::{Change, Order};
use super::config::Family;
use crate::gguf::expert_name;

/// What becomes of a published tensor.
#[derive(Debug, PartialEq)]
pub(super) enum Mapped {
    /// Its name in GGUF, and how its values differ there.
    Tensor(String, Option<Change>),
    /// Of no use to a model of text.
    Ignored,
    /// Not known in this family. A model without it would write nonsense, so nobody leaves it out.
    Unknown,
}

/// The name that llama.cpp's converter gives to the tensor `name` (`gguf-py/gguf/tensor_mapping.py`).
pub(super) fn map(family: Family, name: &str) -> Mapped {
    let is_of_images = name.contains("vision_") || name.contains("multi_modal_projector") || name.contains("visual.");
    if is_of_images || name.ends_with("rotary_emb.inv_freq") {
        return Mapped::Ignored;
    }
    let mut rest = name;
    // A model of text inside one of text and images.
    while let Some(inner) =
        ["model.", "language_model.", "text_model."].iter().find_map(|outer| rest.strip_prefix(outer))
    {
        rest = inner;
    }
    let same = |name: &str| Mapped::Tensor(name.to_owned(), None);
    match rest {
        "embed_tokens.weight" => same("token_embd.weight"),
        "lm_head.weight" => same("output.weight"),
        "norm.weight" => Mapped::Tensor("output_norm.weight".to_owned(), family.norm_change()),
        _ => in_layer(family, rest).unwrap_or(Mapped::Unknown),
    }
}

fn in_layer(family: Family, name: &str) -> Option<Mapped> {
    let (layer, part) = name.strip_prefix("layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let named = |part: &str, change| Some(Mapped::Tensor(format!("blk.{layer}.{part}"), change));
    let turned = |rows| Some(Change::Transposed { rows });
    match (family, part) {
        (_, "self_attn.sinks") => return named("attn_sinks.weight", None),
        (Family::GptOss, "mlp.experts.gate_up_proj") => return named("ffn_gate_up_exps.weight", turned(Order::InTurn)),
        (Family::GptOss, "mlp.experts.gate_up_proj_bias") => {
            return named("ffn_gate_up_exps.bias", Some(Change::Reordered(Order::InTurn)));
        }
        (Family::GptOss, "mlp.experts.down_proj") => return named("ffn_down_exps.weight", turned(Order::InHalves)),
        (Family::GptOss, "mlp.experts.down_proj_bias") => return named("ffn_down_exps.bias", None),
        (Family::Llama4, "feed_forward.experts.gate_up_proj") => {
            return named("ffn_gate_up_exps.weight", turned(Order::InHalves));
        }
        (Family::Llama4, "feed_forward.experts.down_proj") => {
            return named("ffn_down_exps.weight", turned(Order::InHalves));
        }
        _ => {}
    }
    let (module, kind) = part.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
    if let Some((expert, matrix)) = module.strip_prefix("mlp.experts.").and_then(|rest| rest.split_once('.')) {
        let expert: usize = expert.parse().ok().filter(|_| kind == "weight")?;
        let matrix = matrix.strip_suffix("_proj").filter(|matrix| ["gate", "up", "down"].contains(matrix))?;
        return named(&expert_name(&format!("ffn_{matrix}_exps"), expert), None);
    }
    let (name, is_norm) = match (family, module.replace("feed_forward.", "mlp.").as_str()) {
        (_, "input_layernorm") => ("attn_norm", true),
        (Family::Gemma3, "post_attention_layernorm") => ("post_attention_norm", true),
        (Family::Gemma3, "pre_feedforward_layernorm") => ("ffn_norm", true),
        (Family::Gemma3, "post_feedforward_layernorm") => ("post_ffw_norm", true),
        (_, "post_attention_layernorm") => ("ffn_norm", true),
        (_, "self_attn.q_norm") => ("attn_q_norm", true),
        (_, "self_attn.k_norm") => ("attn_k_norm", true),
        (_, "self_attn.q_proj") => ("attn_q", false),
        (_, "self_attn.k_proj") => ("attn_k", false),
        (_, "self_attn.v_proj") => ("attn_v", false),
        (_, "self_attn.o_proj") => ("attn_output", false),
        (Family::Phi3, "self_attn.qkv_proj") => ("attn_qkv", false),
        (Family::Phi3, "mlp.gate_up_proj") => ("ffn_up", false),
        (_, "mlp.gate_proj") => ("ffn_gate", false),
        (_, "mlp.up_proj") => ("ffn_up", false),
        (_, "mlp.down_proj") => ("ffn_down", false),
        (Family::Qwen3Moe, "mlp.gate") | (Family::GptOss | Family::Llama4, "mlp.router") => ("ffn_gate_inp", false),
        (Family::Llama4, "mlp.shared_expert.gate_proj") => ("ffn_gate_shexp", false),
        (Family::Llama4, "mlp.shared_expert.up_proj") => ("ffn_up_shexp", false),
        (Family::Llama4, "mlp.shared_expert.down_proj") => ("ffn_down_shexp", false),
        _ => return None,
    };
    named(&format!("{name}.{kind}"), family.norm_change().filter(|_| is_norm && kind == "weight"))
}

impl Family {
    /// What is done with the weights of its norms.
    const fn norm_change(self) -> Option<Change> {
        match self {
            Self::Gemma3 => Some(Change::PlusOne),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_of_text_is_found_in_one_of_images() {
        let name = |family, name: &str| match map(family, name) {
            Mapped::Tensor(name, _) => name,
            other => format!("{other:?}"),
        };
        for prefix in ["model.", "language_model.model.", "model.language_model."] {
            let tensor = format!("{prefix}layers.7.self_attn.q_proj.bias");
            assert_eq!(name(Family::Llama, &tensor), "blk.7.attn_q.bias");
        }
        assert_eq!(
            name(Family::Qwen3Moe, "model.layers.1.mlp.experts.12.up_proj.weight"),
            "blk.1.ffn_up_exps.12.weight"
        );
        assert_eq!(name(Family::Llama, "language_model.lm_head.weight"), "output.weight");
        assert_eq!(name(Family::Gemma3, "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"), "Ignored");
        assert_eq!(name(Family::Llama, "model.layers.0.self_attn.rotary_emb.inv_freq"), "Ignored");
        assert_eq!(name(Family::Llama, "model.layers.0.self_attn.q_proj.lora_A.weight"), "Unknown");
        assert_eq!(name(Family::Llama, "model.layers.0.mlp.experts.down_proj"), "Unknown");
    }
}
