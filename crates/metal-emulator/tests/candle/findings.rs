//! Faults of candle-metal-kernels 0.11.1 that the checks find, each as small as it shows.

use crate::attention::Case;
use crate::blocks::FORMATS;
use crate::quantized::{Product, mat_vec_shape};
use half::f16;
use metal_emulator::{Access, Address, Buffer, Fault, FaultKind, Launch, Order, library};

fn is_outside(fault: &Fault, of_buffer: u32, how: Access) -> bool {
    matches!(fault.kind, FaultKind::OutOfBounds { access, address: Address::Buffer { index, .. }, .. }
        if index == of_buffer && access == how)
}

/// Causal attention over 40 keys with tiles of 16: the last tile of keys is read whole (upstream pull request 3852).
#[test]
fn steel_attention_causal_reads_keys_past_the_end() {
    let case = Case::<f16>::new(40, 40, 128, true);
    let fault = case.full("float16", Order::Forward).unwrap_err();
    println!("{fault}");
    assert!(is_outside(&fault, 1, Access::Read), "{fault}");
}

/// Rows that don't fill the last threadgroup are stored all the same (upstream issue 3863).
#[test]
fn k_quant_mat_vec_writes_rows_past_the_end() {
    for (name, rows) in [("q2_K", 10), ("q3_K", 10), ("q4_K", 10), ("q5_K", 10), ("q6_K", 17)] {
        let format = FORMATS.iter().find(|format| format.name == name).unwrap();
        let mut product = Product::new(format, rows, 1, 256);
        // Weights enough, so that only the store is out of bounds.
        product.weights = Buffer::from_slice(&format.random(4 * rows, 256).0);
        let fault = product.mat_vec(mat_vec_shape(format).1, Order::Forward).unwrap_err();
        println!("{fault}");
        assert!(is_outside(&fault, 2, Access::Write), "{fault}");
    }
}

/// candle launches Q2_K with 4 rows a threadgroup; the kernel computes 8, so half of the work is done twice, and rows
/// past the end are stored (upstream issue 3863).
#[test]
fn q2_k_mat_vec_computes_every_row_twice() {
    let format = FORMATS.iter().find(|format| format.name == "q2_K").unwrap();
    let mut product = Product::new(format, 24, 1, 256);
    product.weights = Buffer::from_slice(&format.random(96, 256).0);
    let fault = product.mat_vec(4, Order::Forward).unwrap_err();
    println!("{fault}");
    assert!(is_outside(&fault, 2, Access::Write), "{fault}");
}

/// A ragged tile is copied by `float4`, to rows that start at multiples of 4 bytes only.
#[test]
fn kernel_mul_mm_stores_misaligned_float4() {
    let format = FORMATS.iter().find(|format| format.name == "q4_0").unwrap();
    let product = Product::new(format, 37, 5, 256);
    let fault = product.mat_mul(Order::Forward).unwrap_err();
    println!("{fault}");
    assert!(matches!(fault.kind, FaultKind::Misaligned { size: 16, .. }), "{fault}");
    Product::new(format, 40, 5, 256).mat_mul(Order::Forward).unwrap();
}

/// `block_reducer` orders its threadgroup memory with `mem_none`, which orders none.
#[test]
fn reduce_guards_threadgroup_memory_with_mem_none() {
    let x = Buffer::from_slice(&[1f32; 256]);
    let y = Buffer::new(4);
    let launch = Launch::new(library("candle/reduce").unwrap(), "fast_sum_f32")
        .value(0, &256u32)
        .value(1, &2u32)
        .buffer(2, &Buffer::from_slice(&[1u32, 256]), 0)
        .value(3, &256u32)
        .buffer(4, &x, 0)
        .buffer(5, &y, 0);
    let fault = launch.clone().threadgroups([1, 1, 1], [128, 1, 1]).run().unwrap_err();
    println!("{fault}");
    assert!(matches!(fault.kind, FaultKind::Race { .. } | FaultKind::Uninitialized { .. }), "{fault}");
    // A single SIMD-group needs no threadgroup memory.
    assert_eq!(launch.threadgroups([1, 1, 1], [32, 1, 1]).run(), Ok(()));
}
