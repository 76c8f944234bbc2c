use super::*;

fn forwarded() -> Forwarded {
    Forwarded { port: 3000, host: "3000-web.localhost:8080".into(), peer: Some([10, 0, 0, 1].into()), https: false }
}

fn sent(headers: &[(&str, &str)]) -> HeaderMap {
    let mut builder = Request::builder().uri("/path?query=1");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let (head, ()) = builder.body(()).expect("a request").into_parts();
    let upgrade = upgrade(&head.headers);
    let request = to_sandbox(head, &forwarded(), upgrade).expect("it passes");
    assert_eq!(request.uri(), "/path?query=1");
    request.headers().clone()
}

fn received(headers: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"));
    }
    from_sandbox(&mut map, &forwarded());
    map
}

#[test]
fn credentials_of_dispense_stay_outside_and_those_of_the_program_pass() {
    let key = "dsp_0123456789012345678901234567890123456789";
    for (name, value) in [
        ("authorization", format!("Bearer {key}")),
        ("authorization", format!("bearer  {key}")),
        ("x-api-key", key.to_owned()),
        ("x-api-key", key.replace("dsp_", "e2b_")),
        ("cookie", format!("{COOKIE_NAME}=1.abc")),
        ("proxy-authorization", "Basic abc".to_owned()),
    ] {
        assert!(!sent(&[(name, &value)]).contains_key(name), "{name}: {value}");
    }
    let cookies = format!("a=1; {COOKIE_NAME}=1.abc; b=2");
    let passed = sent(&[("authorization", "Bearer theirs"), ("x-api-key", "theirs"), ("cookie", &cookies)]);
    assert_eq!(
        [&passed["authorization"], &passed["x-api-key"], &passed["cookie"]],
        ["Bearer theirs", "theirs", "a=1; b=2"]
    );
}

#[test]
fn the_program_sees_its_own_host_and_who_really_asked() {
    let passed = sent(&[
        ("host", "3000-web.localhost:8080"),
        ("origin", "http://3000-web.localhost:8080"),
        ("referer", "http://3000-web.localhost:8080/page"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-proto", "https"),
        ("forwarded", "for=1.2.3.4"),
        ("x-real-ip", "1.2.3.4"),
    ]);
    for (name, value) in [
        ("host", "localhost:3000"),
        ("origin", "http://localhost:3000"),
        ("referer", "http://localhost:3000/page"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-host", "3000-web.localhost:8080"),
        ("x-forwarded-proto", "http"),
        ("x-real-ip", "10.0.0.1"),
    ] {
        assert_eq!(passed[name], value, "{name}");
    }
    assert!(!passed.contains_key("forwarded"));
    assert_eq!(
        sent(&[("origin", "http://3000-web.localhost:8080.evil")])["origin"],
        "http://3000-web.localhost:8080.evil"
    );
}

#[test]
fn hop_by_hop_headers_end_here() {
    let passed = sent(&[
        ("connection", "close, x-secret"),
        ("x-secret", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
        ("x-kept", "1"),
    ]);
    for name in ["x-secret", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
        assert!(!passed.contains_key(name), "{name}");
    }
    assert_eq!([&passed["te"], &passed["connection"], &passed["x-kept"]], ["trailers", "TE", "1"]);
    let changed = sent(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
    assert_eq!([&changed["connection"], &changed["upgrade"]], ["Upgrade", "websocket"]);
}

#[test]
fn answers_lead_to_the_preview_and_set_no_cookie_for_others() {
    let answer = received(&[
        ("location", "http://localhost:3000/next?a=1"),
        ("set-cookie", "a=1; Domain=localhost; Path=/"),
        ("set-cookie", "b=2; path=/; domain=.localhost;HttpOnly"),
        ("set-cookie", "__dispense_preview=forged; Path=/"),
        ("connection", "keep-alive"),
        ("keep-alive", "timeout=5"),
    ]);
    assert_eq!(answer["location"], "http://3000-web.localhost:8080/next?a=1");
    let cookies: Vec<&str> = answer.get_all("set-cookie").iter().filter_map(|value| value.to_str().ok()).collect();
    assert_eq!(cookies, ["a=1; Path=/", "b=2; path=/;HttpOnly"]);
    assert!(!answer.contains_key("connection") && !answer.contains_key("keep-alive"));
    for elsewhere in ["https://example.org/", "http://localhost:30000/", "/relative"] {
        assert_eq!(received(&[("location", elsewhere)])["location"], elsewhere);
    }
}

#[test]
fn a_request_that_names_two_hosts_names_none() {
    let of = |uri: &str, hosts: &[&str]| {
        let mut builder = Request::builder().uri(uri);
        for host in hosts {
            builder = builder.header("host", *host);
        }
        let request = builder.body(()).expect("a request");
        host(&request).map(str::to_owned)
    };
    assert_eq!(of("/", &["a"]).as_deref(), Some("a"));
    assert_eq!(of("http://a/", &["a"]).as_deref(), Some("a"));
    assert_eq!(of("http://a/", &[]).as_deref(), Some("a"));
    assert_eq!(of("http://a/", &["b"]), None);
    assert_eq!(of("/", &["a", "a"]), None);
    assert_eq!(of("/", &[]), None);
}
