//! Randomness that repeats itself: on a thread that was given a seed, the C library's `getrandom` is a generator.
//! Everything above it, ids, jitter, hash maps and `select!`, follows from the seed then.

#![expect(unsafe_code, reason = "a function of the C library is replaced")]

use std::cell::Cell;

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on this thread's randomness follows from `seed`.
pub(crate) fn seed(seed: u64) {
    STATE.set(Some(seed));
}

fn next(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = state;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state, value ^ (value >> 31))
}

/// As getrandom(2) has it.
///
/// # Safety
/// `buffer` has room for `len` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    len: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    let seeded = STATE.try_with(Cell::get).ok().flatten();
    let Some(mut state) = seeded else {
        // SAFETY: the caller's promise, passed on.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) } as libc::ssize_t;
    };
    // SAFETY: the caller's promise; the bytes need not be initialised to be written.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<std::mem::MaybeUninit<u8>>(), len) };
    for chunk in bytes.chunks_mut(8) {
        let (after, value) = next(state);
        state = after;
        for (byte, random) in chunk.iter_mut().zip(value.to_le_bytes()) {
            byte.write(random);
        }
    }
    STATE.set(Some(state));
    len as libc::ssize_t
}
