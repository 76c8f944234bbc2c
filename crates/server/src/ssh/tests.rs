use super::*;

fn authority() -> Authority {
    let key = || PrivateKey::from(Ed25519Keypair::from_seed(&random_bytes::<32>()));
    let (host, host_authority) = (key(), key());
    let mut builder = Builder::new(random_bytes::<16>(), host.public_key(), 0, u64::MAX - 1).expect("a time");
    builder.cert_type(CertType::Host).expect("once").all_principals_valid().expect("once");
    let host_certificate = builder.sign(&host_authority).expect("our own key");
    Authority { host, host_certificate, host_authority: host_authority.public_key().clone(), user_authority: key() }
}

fn made(connection: &Connection) -> Certificate {
    Certificate::from_openssh(&connection.certificate).expect("a certificate")
}

#[test]
fn a_certificate_opens_one_sandbox_of_one_server_for_a_time() {
    let (one, other) = (authority(), authority());
    let (web, api) = (SandboxId::random(), SandboxId::random());
    let connection = one.connect("", "key1", &web).expect("issued");
    assert!(connection.private_key.contains("OPENSSH PRIVATE KEY"));
    let certificate = made(&connection);
    assert_eq!(one.check(&certificate, &web).as_deref(), Some("key1"));
    assert_eq!(one.check(&certificate, &api), None, "for one sandbox");
    assert_eq!(other.check(&certificate, &web), None, "of another authority");
    assert!(certificate.valid_before() - now() <= USER_CERTIFICATE_SECS);
}

#[test]
fn what_is_not_understood_or_has_expired_opens_nothing() {
    let authority = authority();
    let web = SandboxId::random();
    let (_, public) = new_pair().expect("made");
    let sign = |from: u64, until: u64, change: &dyn Fn(&mut Builder)| {
        let mut builder = Builder::new(random_bytes::<16>(), &public, from, until).expect("a time");
        builder.key_id("key1").expect("once").valid_principal(web.as_str()).expect("once");
        change(&mut builder);
        builder.sign(&authority.user_authority).expect("our own key")
    };
    let later = now() + 100;
    let user = |builder: &mut Builder| drop(builder.cert_type(CertType::User).map(drop));
    assert!(authority.check(&sign(0, later, &user), &web).is_some(), "the allowed neighbour");
    assert_eq!(authority.check(&sign(0, now() - 1, &user), &web), None, "expired");
    assert_eq!(authority.check(&sign(later, later + 1, &user), &web), None, "not yet");
    let host = |builder: &mut Builder| drop(builder.cert_type(CertType::Host).map(drop));
    assert_eq!(authority.check(&sign(0, later, &host), &web), None, "a host's");
    let critical = |builder: &mut Builder| {
        user(builder);
        builder.critical_option("force-command", "true").expect("once");
    };
    assert_eq!(authority.check(&sign(0, later, &critical), &web), None, "an option that is not understood");
}

#[test]
fn only_public_keys_of_good_kinds_are_taken() {
    let (_, public) = new_pair().expect("made");
    let line = public.to_openssh().expect("a line");
    assert_eq!(
        parse_public_key(&format!("{line} me@example\n")).map(|key| fingerprint(&key)),
        Ok(fingerprint(&public))
    );
    let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDAu7tvIvX6ZHrRXuZNfkR3XLHSsuCK9Zn3X58lxBcQzuM5xZgB6vQwJ8m/tJktXm+EPyu4dzh1+0X3Y3M=";
    for wrong in ["", "ssh-ed25519", "ssh-ed25519 AAAA", rsa, &"x".repeat(5000)] {
        let error = parse_public_key(wrong).expect_err(wrong);
        assert_eq!(error.details["field"], "public_key");
    }
}
