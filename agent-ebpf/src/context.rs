//! Reading and writing IPv6 addresses of a context: one word at a time, as the verifier wants it.

/// Reads four words.
///
/// # Safety
/// `ip` points into a live program context.
#[inline(always)]
pub unsafe fn words(ip: *const [u32; 4]) -> [u32; 4] {
    let word: *const u32 = ip.cast();
    // SAFETY: four words lie behind `ip`.
    unsafe {
        [
            word.read_volatile(),
            word.add(1).read_volatile(),
            word.add(2).read_volatile(),
            word.add(3).read_volatile(),
        ]
    }
}

/// Writes four words.
///
/// # Safety
/// As for [`words`].
#[inline(always)]
pub unsafe fn set_words(ip: *mut [u32; 4], words: [u32; 4]) {
    let word: *mut u32 = ip.cast();
    // SAFETY: four words lie behind `ip`.
    unsafe {
        word.write_volatile(words[0]);
        word.add(1).write_volatile(words[1]);
        word.add(2).write_volatile(words[2]);
        word.add(3).write_volatile(words[3]);
    }
}
