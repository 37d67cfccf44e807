use candle_core::{DType, Device, Result, Tensor};

use crate::kv_q8::{pack, scales, unpack};
use crate::{Turn, cpu, rope};

/// Which of the tokens before it a query sees; itself always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// All of them.
    All,
    /// The last so many, itself among them.
    Window(usize),
    /// Those of its own chunk: positions from the last multiple of this length on.
    Chunk(usize),
}

impl Span {
    /// The first position that a query at `position` sees.
    pub const fn first_seen(self, position: usize) -> usize {
        match self {
            Self::All => 0,
            Self::Window(len) => (position + 1).saturating_sub(len),
            Self::Chunk(len) => position - position % len,
        }
    }

    /// The most tokens that one query sees; `None` is as many as there are.
    pub const fn most_seen(self) -> Option<usize> {
        match self {
            Self::All => None,
            Self::Window(len) | Self::Chunk(len) => Some(len),
        }
    }
}

/// What one layer stores of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Length of a key.
    pub key_dim: usize,
    /// Length of a value.
    pub value_dim: usize,
    /// Values are the first `value_dim` of each key, so only keys are stored: latent attention.
    pub values_in_keys: bool,
    /// Which tokens are seen; the others are forgotten.
    pub span: Span,
}

/// How a layer stores keys and values. They are read as f32 on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvFormat {
    /// Each token's keys.
    pub keys: KvNumbers,
    /// Each token's values.
    pub values: KvNumbers,
}

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvNumbers {
    /// As they are, in this type.
    Float(DType),
    /// As 8-bit integers with a scale for each 32 of them; read as f16 where the device isn't the CPU.
    Q8,
}

impl KvFormat {
    /// Both as they are, in this type.
    pub const fn float(dtype: DType) -> Self {
        Self { keys: KvNumbers::Float(dtype), values: KvNumbers::Float(dtype) }
    }

    /// Whether something is stored in fewer bits than it is computed with.
    pub fn is_packed(self) -> bool {
        [self.keys, self.values].contains(&KvNumbers::Q8)
    }
}

/// One tensor of a layer's storage: `(tokens, kv_heads, width)` on the CPU, heads first elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// What it has of one token's head.
    pub width: usize,
    /// Type of its values.
    pub dtype: DType,
}

impl KvShape {
    /// Bytes stored for one token.
    pub fn bytes_per_token(&self, format: KvFormat) -> usize {
        let bytes = self.planes(format).into_iter().map(|plane| plane.width * plane.dtype.size_in_bytes());
        self.kv_heads * bytes.sum::<usize>()
    }

    /// The lengths of what is stored for a token's head and how: keys, then values where they are not in the keys.
    fn vectors(&self, format: KvFormat) -> impl Iterator<Item = (usize, KvNumbers)> + use<> {
        let values = (!self.values_in_keys).then_some((self.value_dim, format.values));
        [(self.key_dim, format.keys)].into_iter().chain(values)
    }

    /// Of each vector the numbers, or the integers and their scales.
    fn planes(&self, format: KvFormat) -> Vec<Plane> {
        let planes = |(width, numbers)| match numbers {
            KvNumbers::Float(dtype) => vec![Plane { width, dtype }],
            KvNumbers::Q8 => vec![Plane { width, dtype: DType::U8 }, Plane { width: scales(width), dtype: DType::F32 }],
        };
        self.vectors(format).flat_map(planes).collect()
    }
}

/// Keys and values of one layer. New ones are written in place; the storage grows in steps and shrinks only by being
/// dropped, so that trimming and going on costs nothing. With a window, what no later token sees makes room.
#[derive(Debug)]
pub struct KvLayer {
    shape: KvShape,
    format: KvFormat,
    device: Device,
    growth_step: usize,
    /// Position of the first stored token.
    start: usize,
    /// Position after the last stored token.
    end: usize,
    /// Tokens that the storage has room for; 0 where it is shared with [`KvRows`] and never written to.
    capacity: usize,
    /// Of [`KvShape::planes`]; empty where there is no storage.
    storage: Vec<Tensor>,
}

/// What a layer stores of some tokens, as it stores them: enough to go on from there again.
#[derive(Clone, Debug)]
pub struct KvRows {
    /// Position of the first token.
    pub start: usize,
    /// Position after the last token.
    pub end: usize,
    /// Of each of [`KvLayer::planes`] the tokens' part; empty where there are no tokens.
    pub planes: Vec<Tensor>,
}

impl KvRows {
    /// Bytes that are allocated.
    pub fn allocated_bytes(&self) -> u64 {
        self.planes.iter().map(|plane| (plane.elem_count() * plane.dtype().size_in_bytes()) as u64).sum()
    }
}

impl KvLayer {
    /// An empty layer that takes no memory yet and grows by `growth_step` tokens at a time.
    pub fn new(shape: KvShape, growth_step: usize, format: KvFormat, device: &Device) -> Self {
        Self {
            shape,
            format,
            device: device.clone(),
            growth_step: growth_step.max(1),
            start: 0,
            end: 0,
            capacity: 0,
            storage: Vec::new(),
        }
    }

    /// Tokens that were appended, those that were forgotten among them: the position of the next.
    pub const fn len(&self) -> usize {
        self.end
    }

    /// Whether no token was appended.
    pub const fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// What is stored of each token.
    pub const fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Position of the first token that is still stored.
    pub const fn start(&self) -> usize {
        self.start
    }

    /// The tensors that the storage consists of, whether or not there is any yet.
    pub fn planes(&self) -> Vec<Plane> {
        self.shape.planes(self.format)
    }

    /// Dimensions of `plane` with so many tokens.
    pub const fn plane_dims(&self, plane: Plane, tokens: usize) -> (usize, usize, usize) {
        match self.token_axis() {
            0 => (tokens, self.shape.kv_heads, plane.width),
            _ => (self.shape.kv_heads, tokens, plane.width),
        }
    }

    /// Where it is stored.
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes that are allocated.
    pub fn allocated_bytes(&self) -> u64 {
        (self.capacity * self.shape.bytes_per_token(self.format)) as u64
    }

    /// Whether everything is still here that the token at position `len` sees.
    pub const fn can_trim(&self, len: usize) -> bool {
        len >= self.end || self.start == 0 || self.shape.span.first_seen(len) >= self.start
    }

    /// Forgets every token from the `len`-th on; does nothing where there are no more than that. Where
    /// [`Self::can_trim`] says no, nothing is left.
    pub fn trim(&mut self, len: usize) {
        if !self.can_trim(len) {
            (self.start, self.end) = (0, 0);
        } else if len < self.end {
            self.end = len;
            self.start = self.start.min(len);
        }
    }

    /// A layer of its own with the tokens before `len`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn copy(&self, len: usize) -> Result<Self> {
        let mut copy = Self::new(self.shape, self.growth_step, self.format, &self.device);
        copy.fill(&self.part(self.start.min(len), self.end.min(len))?)?;
        Ok(copy)
    }

    /// All that is stored, without a copy: good until the layer changes.
    ///
    /// # Errors
    /// When the device fails.
    pub fn rows(&self) -> Result<KvRows> {
        self.part(self.start, self.end)
    }

    /// What later tokens see, apart from the layer's storage.
    ///
    /// # Errors
    /// When there is no memory for a copy.
    pub fn tail(&self) -> Result<KvRows> {
        let mut tail = self.part(self.first_kept(), self.end)?;
        for plane in &mut tail.planes {
            *plane = plane.force_contiguous()?;
        }
        Ok(tail)
    }

    /// Goes back, or forward again, to where `tail` was taken of this layer.
    pub fn restore(&mut self, tail: &KvRows) {
        (self.start, self.end, self.capacity) = (tail.start, tail.end, 0);
        self.storage.clone_from(&tail.planes);
    }

    /// Has a copy of `rows` instead of what it had.
    ///
    /// # Errors
    /// When they are those of another kind of layer, or there is no memory for them.
    pub fn fill(&mut self, rows: &KvRows) -> Result<()> {
        let tokens = rows.end - rows.start;
        if tokens > 0 && rows.planes.len() != self.planes().len() {
            candle_core::bail!("{} planes for a layer of {}", rows.planes.len(), self.planes().len());
        }
        let capacity = tokens.next_multiple_of(self.growth_step);
        self.storage = if tokens == 0 { Vec::new() } else { self.allocate(capacity, &rows.planes)? };
        (self.start, self.end, self.capacity) = (rows.start, rows.end, capacity);
        Ok(())
    }

    /// Appends keys `(tokens, kv_heads, key_dim)` and values `(tokens, kv_heads, value_dim)`, which are ignored where
    /// they are a part of the keys.
    ///
    /// # Errors
    /// When the shapes are others, or there is no memory for more.
    pub fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<()> {
        self.append_turned(keys, None, values)
    }

    /// [`Self::append`] of keys that turn on their way into the cache.
    ///
    /// # Errors
    /// When the shapes are others, or there is no memory for more.
    pub fn append_turned(&mut self, keys: &Tensor, turn: Option<&Turn<'_>>, values: &Tensor) -> Result<()> {
        let tokens = keys.dim(0)?;
        self.make_room(tokens)?;
        let (axis, at) = (self.token_axis(), self.end - self.start);
        let are_floats = self.shape.vectors(self.format).all(|(_, numbers)| matches!(numbers, KvNumbers::Float(_)));
        if self.device.is_cpu() && are_floats && keys.dtype() == DType::F32 && values.dtype() == DType::F32 {
            for ((stored, new), turn) in self.storage.iter().zip([keys, values]).zip([turn, None]) {
                cpu::store(stored, at, new, turn)?;
            }
            self.end += tokens;
            return Ok(());
        }
        let turned = turn.map(|turn| rope(keys, turn.cos, turn.sin, turn.pairing)).transpose()?;
        let keys = turned.as_ref().unwrap_or(keys);
        let mut planes = Vec::with_capacity(self.storage.len());
        for (new, (_, numbers)) in [keys, values].into_iter().zip(self.shape.vectors(self.format)) {
            match numbers {
                KvNumbers::Float(dtype) => planes.push(new.to_dtype(dtype)?),
                KvNumbers::Q8 => planes.extend(pack(new)?),
            }
        }
        for (stored, new) in self.storage.iter().zip(planes) {
            let new = if axis == 0 { new } else { new.transpose(0, 1)? };
            stored.slice_set(&new.contiguous()?, axis, at)?;
        }
        self.end += tokens;
        Ok(())
    }

    /// Stored keys and values as `(kv_heads, tokens, dim)`, without a copy where they are stored as numbers.
    ///
    /// # Errors
    /// When nothing was ever appended.
    pub fn heads_first(&self) -> Result<(Tensor, Tensor)> {
        let (keys, values) = self.stored()?;
        if self.token_axis() == 0 { Ok((keys.transpose(0, 1)?, values.transpose(0, 1)?)) } else { Ok((keys, values)) }
    }

    /// As [`Self::heads_first`], with `more` tokens after the last: what the storage has there, zeros or tokens that were
    /// trimmed, or zeros where it ends before.
    pub(crate) fn heads_first_and_more(&self, more: usize) -> Result<(Tensor, Tensor)> {
        let stored = self.end - self.start;
        let has_room =
            self.storage.iter().all(|plane| plane.dim(self.token_axis()).is_ok_and(|room| stored + more <= room));
        if has_room && more > 0 {
            let longer =
                Self { end: self.end + more, storage: self.storage.clone(), device: self.device.clone(), ..*self };
            return longer.heads_first();
        }
        let (keys, values) = self.heads_first()?;
        Ok((keys.pad_with_zeros(1, 0, more)?, values.pad_with_zeros(1, 0, more)?))
    }

    /// Keys and values in the order in which they are stored: `(tokens, kv_heads, dim)` on the CPU, heads first
    /// elsewhere.
    pub(crate) fn stored(&self) -> Result<(Tensor, Tensor)> {
        let mut planes = self.rows()?.planes.into_iter();
        let mut vectors = Vec::with_capacity(2);
        for (_, numbers) in self.shape.vectors(self.format) {
            vectors.push(match (numbers, planes.next(), &self.device) {
                (KvNumbers::Float(_), Some(numbers), Device::Cpu) => numbers.to_dtype(DType::F32)?,
                (KvNumbers::Float(_), Some(numbers), _) => numbers,
                (KvNumbers::Q8, Some(codes), _) => unpack(&codes, &planes.next().expect("codes have scales"))?,
                (_, None, _) => candle_core::bail!("attention over an empty cache"),
            });
        }
        let mut vectors = vectors.into_iter();
        let keys = vectors.next().expect("every layer has keys");
        let values = match vectors.next() {
            Some(values) => values,
            None => keys.narrow(2, 0, self.shape.value_dim)?,
        };
        Ok((keys, values))
    }

    /// The stored tokens from `start` to `end`, without a copy.
    fn part(&self, start: usize, end: usize) -> Result<KvRows> {
        let part = |plane: &Tensor| plane.narrow(self.token_axis(), start - self.start, end - start);
        let planes = if start == end { Ok(Vec::new()) } else { self.storage.iter().map(part).collect() };
        Ok(KvRows { start, end, planes: planes? })
    }

    /// Storage for `capacity` tokens that begins with `rows`, of which there may be none.
    fn allocate(&self, capacity: usize, rows: &[Tensor]) -> Result<Vec<Tensor>> {
        let planes = self.planes();
        let empty =
            planes.iter().map(|plane| Tensor::zeros(self.plane_dims(*plane, capacity), plane.dtype, &self.device));
        let storage = empty.collect::<Result<Vec<_>>>()?;
        for (stored, rows) in storage.iter().zip(rows) {
            stored.slice_set(&rows.contiguous()?, self.token_axis(), 0)?;
        }
        Ok(storage)
    }

    /// candle's attention wants tokens outermost on the CPU and heads outermost on a GPU.
    const fn token_axis(&self) -> usize {
        match self.device {
            Device::Cpu => 0,
            Device::Cuda(_) | Device::Metal(_) => 1,
        }
    }

    /// The first position that the next token sees, and every later one at most.
    fn first_kept(&self) -> usize {
        self.shape.span.first_seen(self.end).clamp(self.start, self.end)
    }

    /// Makes room for `tokens` more: first by forgetting what none of them sees, then by growing. Forgetting waits until
    /// there is no room, so that a few tokens can be trimmed again.
    fn make_room(&mut self, tokens: usize) -> Result<()> {
        if self.end - self.start + tokens <= self.capacity {
            return Ok(());
        }
        let kept = self.part(self.first_kept(), self.end)?;
        // A step of slack beyond the window: less and every token would move the rest.
        let needed = (kept.end - kept.start + tokens + 1).next_multiple_of(self.growth_step);
        let capacity = needed.max(self.capacity);
        self.storage = self.allocate(capacity, &kept.planes)?;
        (self.start, self.capacity) = (kept.start, capacity);
        Ok(())
    }
}
