//! Names for sandboxes whose callers give none: two words that people can say and a number that makes them
//! rare. Uniqueness is the store's.

const FIRST: [&str; 32] = [
    "amber", "bold", "brisk", "calm", "clear", "cool", "deft", "eager", "early", "fair", "fond", "fresh", "gentle",
    "glad", "green", "keen", "kind", "light", "lucid", "merry", "mild", "neat", "noble", "plain", "proud", "quick",
    "quiet", "sharp", "solid", "still", "swift", "warm",
];
const SECOND: [&str; 32] = [
    "alder", "aspen", "badger", "birch", "brook", "cedar", "cliff", "cloud", "crane", "delta", "dune", "falcon",
    "fern", "finch", "fjord", "grove", "heron", "iris", "lake", "larch", "maple", "marsh", "otter", "pine", "reef",
    "ridge", "river", "robin", "sparrow", "stone", "tarn", "willow",
];

/// A new name, e.g. `calm-otter-40213`.
pub(crate) fn random() -> String {
    let mut bytes = [0u8; 6];
    getrandom::fill(&mut bytes).expect("the kernel gives randomness to every process");
    let [first, second, rest @ ..] = bytes;
    let number = u32::from_le_bytes(rest) % 100_000;
    format!("{}-{}-{number}", FIRST[usize::from(first % 32)], SECOND[usize::from(second % 32)])
}

#[cfg(test)]
mod tests {
    use dispense_api::name::Name;

    #[test]
    fn every_made_name_is_valid() {
        for _ in 0..1000 {
            let name = super::random();
            assert!(name.parse::<Name>().is_ok(), "{name}");
        }
    }
}
