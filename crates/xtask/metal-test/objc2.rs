//! Stands in for the crate `objc2` where there is no Objective-C: what candle and our own crates name of it.

use std::ops::Deref;

/// Which version of macOS this is. The emulator is always new enough.
#[macro_export]
macro_rules! available {
    ($($system:ident = $version:literal),*) => {
        true
    };
}

/// Reference counting.
pub mod rc {
    pub use super::Retained;

    /// A pool of which nothing asks anything.
    pub struct AutoreleasePool<'pool>(std::marker::PhantomData<&'pool ()>);

    /// Runs `f`; there is nothing to release at its end.
    pub fn autoreleasepool<T>(f: impl for<'pool> FnOnce(AutoreleasePool<'pool>) -> T) -> T {
        f(AutoreleasePool(std::marker::PhantomData))
    }
}

/// An object that is owned.
pub struct Retained<T>(T);

impl<T> Retained<T> {
    /// Takes `value` in.
    pub fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for Retained<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
