//! What becomes of memory that is given back.

/// Keeps freed memory for what asks next, instead of returning it to the system; once, at the start of
/// a program that takes and gives back the same large tensors again and again. glibc would have the system
/// clear their pages every time: two fifths of a forward and backward pass of Stable Diffusion on a CPU.
///
/// For training and for scoring. A program that draws pictures gains nothing by it, and would keep the holes
/// that loading leaves: a third more memory for one forward pass (docs/performance.md).
///
/// Does nothing under another C library than glibc.
#[expect(unsafe_code, reason = "calls the C library")]
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets two numbers of the allocator, under its own lock; no memory is touched.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}
