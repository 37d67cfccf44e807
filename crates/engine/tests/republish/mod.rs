//! GGUF models in the form that they were published in: what llama.cpp's converter did, undone. Written from its
//! formulas, not from the engine's, so that the two can be held against each other.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use candle_core::quantized::gguf_file::Content;
use candle_core::{D, Device, Tensor};

/// Families that can be published again.
pub(crate) const FAMILIES: [&str; 11] = [
    "llama",
    "mistral",
    "ministral3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma3_text",
    "smollm3",
    "phi3",
    "gpt_oss",
    "llama4_text",
];

type Tensors = HashMap<String, Tensor>;

/// Writes the model in `gguf`, whose configuration is `config`, into `folder` as two files of weights and their index.
pub(crate) fn republish(gguf: &Path, config: &serde_json::Value, folder: &Path) -> anyhow::Result<()> {
    let mut file = fs::File::open(gguf)?;
    let content = Content::read(&mut file)?;
    let mut shards = [Tensors::new(), Tensors::new()];
    let mut index = serde_json::Map::new();
    let tensors: Tensors = content
        .tensor_infos
        .keys()
        .map(|name| Ok((name.clone(), content.tensor(&mut file, name, &Device::Cpu)?.dequantize(&Device::Cpu)?)))
        .collect::<anyhow::Result<_>>()?;
    for (i, (name, tensor)) in published(tensors, config)?.into_iter().enumerate() {
        let shard = i % shards.len();
        index.insert(name.clone(), shard_name(shard).into());
        shards[shard].insert(name, tensor);
    }
    for (shard, tensors) in shards.iter().enumerate() {
        candle_core::safetensors::save(tensors, folder.join(shard_name(shard)))?;
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": index });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string())?;
    fs::write(folder.join("config.json"), config.to_string())?;
    Ok(())
}

fn shard_name(shard: usize) -> String {
    format!("model-{:05}-of-00002.safetensors", shard + 1)
}

fn published(mut tensors: Tensors, config: &serde_json::Value) -> anyhow::Result<Vec<(String, Tensor)>> {
    let family = config["model_type"].as_str().context("model_type")?;
    // Computed from the configuration.
    tensors.remove("rope_freqs.weight");
    let mut published = Vec::new();
    let gates: Vec<String> = tensors.keys().filter(|name| name.contains("ffn_gate_exps.")).cloned().collect();
    for gate in gates.iter().filter(|_| family != "qwen3_moe") {
        let up = tensors.remove(&gate.replace("gate", "up")).context("up")?;
        let both = fused(&tensors.remove(gate).context("gate")?, &up, family)?;
        published.push((published_name(&gate.replace("gate", "gate_up"), family)?, both));
    }
    for (name, tensor) in tensors {
        let heads = |key: &str| config[key].as_u64().map(|heads| heads as usize).context("heads");
        let is_permuted = ["llama", "mistral", "ministral3", "smollm3"].contains(&family);
        if name.contains("_exps.weight") && family == "qwen3_moe" {
            let (layer, part) = name.split_once(".ffn_").context("layer")?;
            let part = part.trim_end_matches("_exps.weight");
            for expert in 0..tensor.dim(0)? {
                let name = format!("{}.mlp.experts.{expert}.{part}_proj.weight", layer.replace("blk", "model.layers"));
                published.push((name, tensor.get(expert)?.contiguous()?));
            }
            continue;
        }
        let tensor = if name.contains("attn_q.") && is_permuted {
            unpermuted(&tensor, heads("num_attention_heads")?)?
        } else if name.contains("attn_k.") && is_permuted {
            unpermuted(&tensor, heads("num_key_value_heads")?)?
        } else if name.ends_with("norm.weight") && family == "gemma3_text" {
            (tensor - 1.0)?
        } else if name.contains("ffn_down_exps.weight") {
            tensor.transpose(D::Minus1, D::Minus2)?.contiguous()?
        } else {
            tensor
        };
        published.push((published_name(&name, family)?, tensor));
    }
    Ok(published)
}

/// The converter puts the two halves of each head in turn.
fn unpermuted(rows: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (all, columns) = rows.dims2()?;
    rows.reshape((heads, all / heads / 2, 2, columns))?.transpose(1, 2)?.contiguous()?.reshape((all, columns))
}

/// gpt-oss has gate and up in turn, Llama 4 one after the other; matrices are transposed.
fn fused(gate: &Tensor, up: &Tensor, family: &str) -> candle_core::Result<Tensor> {
    let is_matrix = gate.rank() == 3;
    let turned = |x: &Tensor| if is_matrix { x.transpose(1, 2)?.contiguous() } else { Ok(x.clone()) };
    let (gate, up) = (turned(gate)?, turned(up)?);
    match family {
        "gpt_oss" => Tensor::stack(&[gate, up], D::Minus1)?.flatten(gate_rank(is_matrix), gate_rank(is_matrix) + 1),
        _ => Tensor::cat(&[gate, up], D::Minus1),
    }
}

const fn gate_rank(is_matrix: bool) -> usize {
    if is_matrix { 2 } else { 1 }
}

fn published_name(name: &str, family: &str) -> anyhow::Result<String> {
    let top = [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
    ];
    if let Some((_, published)) = top.iter().find(|(gguf, _)| *gguf == name) {
        return Ok((*published).to_owned());
    }
    let mut parts = name.splitn(3, '.').skip(1);
    let (layer, part) = (parts.next().context("layer")?, parts.next().context("part")?);
    let mlp = if family == "llama4_text" { "feed_forward" } else { "mlp" };
    let suffix = part.rsplit_once('.').context("suffix")?.1;
    let published = match part.trim_end_matches(".weight").trim_end_matches(".bias") {
        "attn_sinks" => "self_attn.sinks".to_owned(),
        "attn_norm" => format!("input_layernorm.{suffix}"),
        "post_attention_norm" => format!("post_attention_layernorm.{suffix}"),
        "ffn_norm" if family == "gemma3_text" => format!("pre_feedforward_layernorm.{suffix}"),
        "ffn_norm" => format!("post_attention_layernorm.{suffix}"),
        "post_ffw_norm" => format!("post_feedforward_layernorm.{suffix}"),
        "attn_q_norm" => format!("self_attn.q_norm.{suffix}"),
        "attn_k_norm" => format!("self_attn.k_norm.{suffix}"),
        "attn_q" => format!("self_attn.q_proj.{suffix}"),
        "attn_k" => format!("self_attn.k_proj.{suffix}"),
        "attn_v" => format!("self_attn.v_proj.{suffix}"),
        "attn_output" => format!("self_attn.o_proj.{suffix}"),
        "ffn_gate" => format!("{mlp}.gate_proj.{suffix}"),
        "ffn_up" => format!("{mlp}.up_proj.{suffix}"),
        "ffn_down" => format!("{mlp}.down_proj.{suffix}"),
        "ffn_gate_inp" if family == "qwen3_moe" => format!("{mlp}.gate.{suffix}"),
        "ffn_gate_inp" => format!("{mlp}.router.{suffix}"),
        "ffn_gate_shexp" => format!("{mlp}.shared_expert.gate_proj.{suffix}"),
        "ffn_up_shexp" => format!("{mlp}.shared_expert.up_proj.{suffix}"),
        "ffn_down_shexp" => format!("{mlp}.shared_expert.down_proj.{suffix}"),
        "ffn_gate_up_exps" if suffix == "bias" => format!("{mlp}.experts.gate_up_proj_bias"),
        "ffn_gate_up_exps" => format!("{mlp}.experts.gate_up_proj"),
        "ffn_down_exps" if suffix == "bias" => format!("{mlp}.experts.down_proj_bias"),
        "ffn_down_exps" => format!("{mlp}.experts.down_proj"),
        other => anyhow::bail!("no published name for `{other}`"),
    };
    Ok(format!("model.layers.{layer}.{published}"))
}
