use candle_core::{DType, Device, Result, Tensor};

/// Keys and values of one layer. New ones are written in place; the storage grows in steps and shrinks only by being
/// dropped, so that trimming and going on costs nothing.
#[derive(Debug)]
pub struct KvLayer {
    kv_heads: usize,
    head_dim: usize,
    dtype: DType,
    device: Device,
    growth_step: usize,
    len: usize,
    capacity: usize,
    storage: Option<(Tensor, Tensor)>,
}

impl KvLayer {
    /// An empty layer that takes no memory yet and grows by `growth_step` tokens at a time.
    pub fn new(kv_heads: usize, head_dim: usize, growth_step: usize, dtype: DType, device: &Device) -> Self {
        let growth_step = growth_step.max(1);
        Self { kv_heads, head_dim, dtype, device: device.clone(), growth_step, len: 0, capacity: 0, storage: None }
    }

    /// Tokens in it.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is in it.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that are allocated.
    pub fn allocated_bytes(&self) -> u64 {
        (2 * self.capacity * self.kv_heads * self.head_dim * self.dtype.size_in_bytes()) as u64
    }

    /// Forgets every token from the `len`-th on; does nothing where there are no more than that.
    pub fn trim(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Appends keys and values of shape `(tokens, kv_heads, head_dim)`.
    ///
    /// # Errors
    /// When the shapes are others, or there is no memory for more.
    pub fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<()> {
        let tokens = keys.dim(0)?;
        self.reserve(self.len + tokens)?;
        let axis = self.token_axis();
        let Some((stored_keys, stored_values)) = &self.storage else { candle_core::bail!("no storage after reserve") };
        for (stored, new) in [(stored_keys, keys), (stored_values, values)] {
            let new = new.to_dtype(self.dtype)?;
            let new = if axis == 0 { new } else { new.transpose(0, 1)? };
            stored.slice_set(&new.contiguous()?, axis, self.len)?;
        }
        self.len += tokens;
        Ok(())
    }

    /// Keys and values as `(kv_heads, tokens, head_dim)`, without a copy.
    pub(crate) fn heads_first(&self) -> Result<(Tensor, Tensor)> {
        let (keys, values) = self.stored()?;
        if self.token_axis() == 0 { Ok((keys.transpose(0, 1)?, values.transpose(0, 1)?)) } else { Ok((keys, values)) }
    }

    /// Keys and values as they are stored: `(tokens, kv_heads, head_dim)` on the CPU, heads first elsewhere.
    pub(crate) fn stored(&self) -> Result<(Tensor, Tensor)> {
        let Some((keys, values)) = &self.storage else { candle_core::bail!("attention over an empty cache") };
        let axis = self.token_axis();
        Ok((keys.narrow(axis, 0, self.len)?, values.narrow(axis, 0, self.len)?))
    }

    /// candle's attention wants tokens outermost on the CPU and heads outermost on a GPU.
    const fn token_axis(&self) -> usize {
        match self.device {
            Device::Cpu => 0,
            Device::Cuda(_) | Device::Metal(_) => 1,
        }
    }

    fn reserve(&mut self, len: usize) -> Result<()> {
        if len <= self.capacity {
            return Ok(());
        }
        let capacity = len.next_multiple_of(self.growth_step);
        let axis = self.token_axis();
        let shape = match axis {
            0 => (capacity, self.kv_heads, self.head_dim),
            _ => (self.kv_heads, capacity, self.head_dim),
        };
        let keys = Tensor::zeros(shape, self.dtype, &self.device)?;
        let values = Tensor::zeros(shape, self.dtype, &self.device)?;
        if self.len > 0 {
            let (old_keys, old_values) = self.stored()?;
            keys.slice_set(&old_keys.contiguous()?, axis, 0)?;
            values.slice_set(&old_values.contiguous()?, axis, 0)?;
        }
        self.storage = Some((keys, values));
        self.capacity = capacity;
        Ok(())
    }
}
