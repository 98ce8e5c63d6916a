//! Finds the headers of length-prefixed frames in a stream of bytes that arrives in pieces of any size.

/// The position in a stream of frames, each with a header of `N` bytes that tells how long its payload is.
#[derive(Debug)]
pub(crate) struct Prefixed<const N: usize> {
    header: [u8; N],
    filled: usize,
    /// Bytes of the current payload that have not passed yet.
    payload: usize,
}

impl<const N: usize> Default for Prefixed<N> {
    fn default() -> Self {
        Self {
            header: [0; N],
            filled: 0,
            payload: 0,
        }
    }
}

impl<const N: usize> Prefixed<N> {
    /// Passes each header that is completed by `data` to `on_header`, which returns the length of the
    /// payload that follows.
    ///
    /// # Errors
    ///
    /// The first error of `on_header`; the stream is not to be read any further then.
    #[inline]
    pub(crate) fn read<E>(
        &mut self,
        mut data: &[u8],
        mut on_header: impl FnMut(&[u8; N]) -> Result<usize, E>,
    ) -> Result<(), E> {
        while !data.is_empty() {
            let inside = self.payload.min(data.len());
            self.payload -= inside;
            data = &data[inside..];
            let wanted = (N - self.filled).min(data.len());
            self.header[self.filled..self.filled + wanted].copy_from_slice(&data[..wanted]);
            self.filled += wanted;
            data = &data[wanted..];
            if self.filled == N {
                self.payload = on_header(&self.header)?;
                self.filled = 0;
            }
        }
        Ok(())
    }

    /// Whether the next byte begins a header.
    pub(crate) fn is_between(&self) -> bool {
        self.filled == 0 && self.payload == 0
    }
}
