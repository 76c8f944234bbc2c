//! The simulation replaces the C library's `getrandom`; libraries that look it up by name must find ours.

fn main() {
    println!("cargo::rustc-link-arg-bin=sim=-rdynamic");
}
