//! Users of the sandbox, read from its `/etc/passwd` and `/etc/group`.
//!
//! Not by `getpwnam`: in a static program it would load the sandbox's own name-service modules.

use std::fs;
use std::path::PathBuf;

use dispense_api::error::{Code, Error};

/// A user inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

/// Finds a user by name or number; a number needs no entry.
pub(crate) fn find(text: &str) -> Result<User, Error> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    find_in(text, &passwd, &group)
}

fn find_in(text: &str, passwd: &str, group: &str) -> Result<User, Error> {
    let number: Option<u32> = text.parse().ok();
    let entries = passwd.lines().filter_map(parse_entry);
    let mut known: Vec<User> = entries.collect();
    let by_name = known.iter().position(|user| user.name == text);
    let found = by_name.or_else(|| known.iter().position(|user| Some(user.uid) == number));
    let mut user = match (found, number) {
        (Some(index), _) => known.swap_remove(index),
        (None, Some(uid)) => {
            User { name: uid.to_string(), uid, gid: uid, groups: Vec::new(), home: "/".into(), shell: "/bin/sh".into() }
        }
        // Without a passwd file there is still root.
        (None, None) if text == "root" => User {
            name: "root".into(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            home: "/root".into(),
            shell: "/bin/sh".into(),
        },
        (None, None) => {
            let names: Vec<&str> = known.iter().map(|user| user.name.as_str()).take(20).collect();
            let message =
                format!("user `{text}` does not exist in the sandbox: use a uid or one of {}", names.join(", "));
            return Err(Error::new(Code::InvalidArgument, "user_unknown", message));
        }
    };
    user.groups = group.lines().filter_map(|line| membership(line, &user.name)).collect();
    if !user.groups.contains(&user.gid) {
        user.groups.push(user.gid);
    }
    Ok(user)
}

fn parse_entry(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
    Some(User {
        name: name.to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        groups: Vec::new(),
        home: home.into(),
        shell: if shell.is_empty() { "/bin/sh".into() } else { shell.into() },
    })
}

fn membership(line: &str, name: &str) -> Option<u32> {
    let fields: Vec<&str> = line.split(':').collect();
    let [_, _, gid, members] = fields[..] else { return None };
    members.split(',').any(|member| member == name).then(|| gid.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nuser:x:1000:1001::/home/user:\n";
    const GROUP: &str = "sudo:x:27:user,other\nuser:x:1001:\n";

    #[test]
    fn users_are_found_by_name_and_number_with_their_groups() {
        let user = find_in("user", PASSWD, GROUP).expect("there");
        assert_eq!((user.uid, user.gid, user.groups.as_slice()), (1000, 1001, &[27, 1001][..]));
        assert_eq!(user.shell, PathBuf::from("/bin/sh"));
        assert_eq!(find_in("1000", PASSWD, GROUP).expect("there"), user);
        assert_eq!(find_in("4711", PASSWD, GROUP).expect("a number").uid, 4711);
        assert_eq!(find_in("root", "", "").expect("always").home, PathBuf::from("/root"));
    }

    #[test]
    fn an_unknown_user_is_named_with_those_that_exist() {
        let error = find_in("nobody-here", PASSWD, GROUP).expect_err("not there");
        assert!(error.message.contains("nobody-here") && error.message.contains("root, user"), "{error}");
    }
}
