use std::marker::PhantomData;

/// A slice of which several threads write different parts.
pub(crate) struct Parts<'a, T>(*mut T, PhantomData<&'a mut [T]>);

impl<'a, T> Parts<'a, T> {
    pub(crate) const fn new(slice: &'a mut [T]) -> Self {
        Self(slice.as_mut_ptr(), PhantomData)
    }

    pub(crate) const fn at(&self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}

#[expect(unsafe_code, reason = "a pointer is handed to several threads")]
// SAFETY: whoever follows it makes sure that the part is nobody else's.
unsafe impl<T: Send> Sync for Parts<'_, T> {}
