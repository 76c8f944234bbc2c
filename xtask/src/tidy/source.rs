//! Rules for one source file.

use std::path::Path;

/// Over this a file is refused; CONTRIBUTING.md asks for 300 and a reason over 500.
const FILE_MAX_LINES: usize = 800;
/// Over this a file needs `Long because` in its module documentation.
const FILE_REASON_LINES: usize = 500;
/// Over this a function is refused.
const FUNCTION_MAX_LINES: usize = 70;
/// Folders that name a layer or a kind instead of a noun of the domain.
const FORBIDDEN_FOLDERS: &[&str] =
    &["services", "models", "utils", "common", "core", "types", "helpers", "manager", "imp"];

/// Findings in one file.
pub(crate) fn check(file: &Path, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let mut add = |line: usize, rule: &str| findings.push(format!("{}:{line}: {rule}", file.display()));
    let is_test = file.components().any(|part| part.as_os_str() == "tests") || file.ends_with("tests.rs");
    // The rules themselves name what they forbid.
    let is_rule = file.ends_with("tidy/source.rs");
    if !is_test && !text.trim_start().starts_with("//!") && !text.contains("\n//!") {
        add(1, "a module starts with `//!`: what it is for, and what it is not for");
    }
    if file.file_name().is_some_and(|name| name == "mod.rs") {
        add(1, "use `name.rs` beside `name/`, not `mod.rs`");
    }
    for part in file.components().filter_map(|part| part.as_os_str().to_str()) {
        if FORBIDDEN_FOLDERS.contains(&part) {
            add(1, &format!("`{part}` is a layer or kind: name a noun of the domain"));
        }
    }
    let code = code_part(text);
    let lines = code.lines().count();
    if !is_test && lines > FILE_MAX_LINES {
        add(lines, &format!("{lines} lines without tests, at most {FILE_MAX_LINES}"));
    } else if !is_test && lines > FILE_REASON_LINES && !text.contains("Long because") {
        add(
            lines,
            &format!("{lines} lines without tests: split it, or say `Long because …` in the module documentation"),
        );
    }
    for (start, length) in long_functions(if is_test { text } else { code }) {
        add(start, &format!("a function of {length} lines, at most {FUNCTION_MAX_LINES}"));
    }
    if is_rule {
        return findings;
    }
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        let in_test = is_test || index >= lines;
        if trimmed.starts_with("//") {
            continue;
        }
        let number = index + 1;
        if in_test && (line.contains("thread::sleep(") || line.contains("time::sleep(")) {
            add(number, "no sleep in a test: wait for a condition with a deadline");
        }
        if trimmed.starts_with("#[allow(") && !line.contains("reason") {
            add(number, "`#[expect(…, reason = \"…\")]`, not `#[allow]`");
        }
        if uses_unsafe(trimmed) && file.file_name().is_none_or(|name| name != "sys.rs") {
            add(number, "`unsafe` stands only in files named sys.rs");
        }
        if trimmed.starts_with("#[ignore") {
            add(number, "no test is ignored");
        }
        for mark in ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX"] {
            if line.contains(mark) {
                add(number, &format!("`{mark}` is unfinished work"));
            }
        }
    }
    findings
}

fn uses_unsafe(line: &str) -> bool {
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|word| line.contains(word))
        && !line.contains('"')
}

/// The text before the unit tests.
fn code_part(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod ").map_or(text, |end| &text[..=end])
}

/// First line and length of each function that is too long. Formatted code closes a function with a brace
/// at the indentation of its `fn`.
fn long_functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let before = trimmed.split("fn ").next().unwrap_or_default();
        let opens = trimmed.contains("fn ")
            && before.split_whitespace().all(|word| {
                ["pub", "async", "const", "unsafe", "extern", "\"C\""].contains(&word) || word.starts_with("pub(")
            });
        if !opens {
            continue;
        }
        let close = format!("{}}}", &line[..line.len() - trimmed.len()]);
        let length =
            lines[start..].iter().position(|line| *line == close || line.ends_with(';') && *line == lines[start]);
        if let Some(length) = length.filter(|length| *length > FUNCTION_MAX_LINES) {
            found.push((start + 1, length));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> usize {
        check(Path::new(path), text).len()
    }

    #[test]
    fn a_clean_file_has_no_findings() {
        assert_eq!(rules("crates/x/src/a.rs", "//! For a reason.\n\nfn f() {\n    g();\n}\n"), 0);
    }

    #[test]
    fn each_rule_finds_what_it_forbids() {
        assert_eq!(rules("crates/x/src/a.rs", "fn f() {}\n"), 1, "module documentation");
        assert_eq!(rules("crates/x/src/utils/a.rs", "//! A.\n"), 1, "folder");
        assert_eq!(rules("crates/x/src/a.rs", "//! A.\nfn f() {\n    unsafe { g() }\n}\n"), 1, "unsafe");
        assert_eq!(rules("crates/x/src/sys.rs", "//! A.\nfn f() {\n    unsafe { g() }\n}\n"), 0, "unsafe in sys.rs");
        assert_eq!(rules("crates/x/tests/a.rs", "fn f() {\n    std::thread::sleep(d);\n}\n"), 1, "sleep");
        assert_eq!(rules("crates/x/src/a.rs", "//! A.\n#[allow(dead_code)]\nfn f() {}\n"), 1, "allow");
        let long = format!("//! A.\nfn f() {{\n{}}}\n", "    g();\n".repeat(71));
        assert_eq!(rules("crates/x/src/a.rs", &long), 1, "long function");
        let file = format!("//! A.\n{}", "const A: u8 = 1;\n".repeat(501));
        assert_eq!(rules("crates/x/src/a.rs", &file), 1, "long file");
    }
}
