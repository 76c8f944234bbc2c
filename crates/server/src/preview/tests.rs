use super::*;

#[test]
fn host_names_stand_for_sandboxes_and_ports() {
    let config =
        PreviewConfig { domain: "dev.example".into(), app_domain: "app.dev.example".into(), ..Default::default() };
    let place = |sandbox: &str, port| Some(Place { sandbox: sandbox.to_owned(), port });
    for (host, wanted) in [
        ("3000-web.dev.example", place("web", 3000)),
        ("3000-web.dev.example:8080", place("web", 3000)),
        ("3000-WEB.Dev.Example.", place("web", 3000)),
        ("8000-my-app.dev.example", place("my-app", 8000)),
        ("web.app.dev.example", place("web", 3000)),
        ("8000-my-app.app.dev.example", place("8000-my-app", 3000)),
        ("dev.example", None),
        ("web.dev.example", None),
        ("0-web.dev.example", None),
        ("03000-web.dev.example", None),
        ("65536-web.dev.example", None),
        ("+80-web.dev.example", None),
        ("3000-.dev.example", None),
        ("a.3000-web.dev.example", None),
        ("3000-web.dev.example.evil", None),
        ("3000-webdev.example", None),
        ("127.0.0.1:8080", None),
        ("[::1]:8080", None),
        ("", None),
    ] {
        assert_eq!(config.place(host), wanted, "{host}");
    }
}

#[test]
fn a_token_is_for_one_use_one_sandbox_one_port_one_server_one_key_and_a_time() {
    let (one, other) = (ServerSecret::new("1"), ServerSecret::new("2"));
    let (web, api) = (SandboxId::random(), SandboxId::random());
    let key_id = "key0123456789abcdef0123".to_owned();
    let grant = Grant { until: 1000, made_at: 5, key_id };
    let token = sign(&one, Kind::Link, &web, 3000, &grant);
    assert_eq!(verify(&one, 999, Kind::Link, &web, 3000, &token), Ok(grant.clone()));
    assert_eq!(verify(&one, 1000, Kind::Link, &web, 3000, &token), Err(Flaw::Expired));
    let longer = token.replacen("1000.", "9999.", 1);
    let newer = token.replacen(".5.", ".6.", 1);
    let nobodys = token.replacen(&grant.key_id, "", 1);
    let anothers = token.replacen("key0", "key1", 1);
    let extreme = Grant { until: i64::MAX, made_at: i64::MIN, key_id: grant.key_id.clone() };
    let extreme = sign(&one, Kind::Link, &web, 3000, &extreme);
    assert!(verify(&one, 999, Kind::Link, &web, 3000, &extreme).is_ok(), "{} bytes", extreme.len());
    for (secret, kind, sandbox, port, token) in [
        (&other, Kind::Link, &web, 3000, &token),
        (&one, Kind::Cookie, &web, 3000, &token),
        (&one, Kind::Link, &api, 3000, &token),
        (&one, Kind::Link, &web, 3001, &token),
        (&one, Kind::Link, &web, 3000, &longer),
        (&one, Kind::Link, &web, 3000, &newer),
        (&one, Kind::Link, &web, 3000, &nobodys),
        (&one, Kind::Link, &web, 3000, &anothers),
        (&one, Kind::Link, &web, 3000, &format!("+{token}")),
        (&one, Kind::Link, &web, 3000, &format!("{token}.")),
        (&one, Kind::Link, &web, 3000, &format!("{token}{}", "0".repeat(1 << 20))),
        (&one, Kind::Link, &web, 3000, &String::new()),
        (&one, Kind::Link, &web, 3000, &"1000".to_owned()),
        (&one, Kind::Link, &web, 3000, &"x.y".to_owned()),
    ] {
        assert_eq!(verify(secret, 1, kind, sandbox, port, token), Err(Flaw::Foreign), "{token}");
    }
}

#[test]
fn a_link_leads_to_the_port_that_the_server_is_known_by() {
    let place = Place { sandbox: "web".into(), port: 3000 };
    let of = |port, https| PreviewConfig { port, https, ..PreviewConfig::default() }.origin(&place, 8080);
    assert_eq!(of(None, false), "http://3000-web.localhost:8080");
    assert_eq!(of(Some(80), false), "http://3000-web.localhost");
    assert_eq!(of(Some(443), true), "https://3000-web.localhost");
    assert_eq!(of(Some(80), true), "https://3000-web.localhost:80");
}

#[test]
fn a_token_names_a_key_or_nobody_and_nothing_else() {
    let secret = ServerSecret::new("1");
    let web = SandboxId::random();
    let signed = |key_id: &str| {
        let grant = Grant { until: 1000, made_at: 5, key_id: key_id.to_owned() };
        verify(&secret, 1, Kind::Cookie, &web, 3000, &sign(&secret, Kind::Cookie, &web, 3000, &grant))
    };
    assert_eq!(signed("").map(|grant| grant.key_id), Ok(String::new()));
    for wrong in ["key", "admin", "key0123456789ABCDEF0123", "key0123456789abcdef012", "key0123456789abcdef012.", " "] {
        assert_eq!(signed(wrong), Err(Flaw::Foreign), "{wrong}");
    }
}
