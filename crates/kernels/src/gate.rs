use candle_core::{Device, Result, Tensor};

use crate::cpu;

/// `silu(gate) · up`, the activation of a gated feed-forward layer.
///
/// # Errors
/// When the shapes differ.
pub fn silu_gate(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if let Device::Cpu = gate.device() {
        return gate.contiguous()?.apply_op2_no_bwd(&up.contiguous()?, &cpu::SiluGate);
    }
    silu_gate_reference(gate, up)
}

/// [`silu_gate`] in plain candle ops.
///
/// # Errors
/// When the shapes differ.
pub fn silu_gate_reference(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// `1 / (1 + e⁻ˣ)`
///
/// # Errors
/// Where the device has no memory for it.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    candle_nn::ops::sigmoid(x)
}
