//! Bad configurations: told with place and key by `forefront check` and `forefront proxy`, and the exit code is 2.

use crate::bed::{check, refused_by_proxy};

const GOOD: &str = "\
[[upstream]]
name = 'u'
endpoints = ['127.0.0.1:1']
[[route]]
name = 'r'
path = '/*'
upstream = 'u'
";

/// What is appended to the good file, and what must be told: line and key, and words of the reason.
const BAD: &[(&str, &[&str])] = &[
    ("timout = '30s'", &["proxy.toml:8", "route[0].timout", "did you mean \"timeout\""]),
    ("timeout = 30", &["proxy.toml:8", "route[0].timeout", "is not a duration"]),
    ("retry = 'often'", &["proxy.toml:8", "route[0].retry", "unsent"]),
    ("cache = { max_age = '60s', refresh_at = '61s' }", &["proxy.toml:8", "route[0].cache.refresh_at"]),
    ("[cache]\ncapacity = '1 gigabyte'", &["proxy.toml:9", "cache.capacity"]),
    ("[limits]\nconnections = 0", &["proxy.toml:9", "limits.connections"]),
    ("[limits]\ntrusted = ['10.0.0.0/33']", &["proxy.toml:9", "limits.trusted"]),
    ("[listen]\nhttp = ['localhost']", &["proxy.toml:9", "listen.http"]),
    ("[listen]\nhttps = ['[::]:443']", &["proxy.toml:9", "listen.https", "add [tls] with self_signed"]),
    ("[listen]\nhttp3 = true", &["proxy.toml:9", "listen.http3", "needs an HTTPS listener"]),
    ("[listen]\nproxy_protocol = 'accept'", &["proxy.toml:9", "listen.proxy_protocol", "of the balancer"]),
    ("[tls]\ncertificate = '/c'", &["proxy.toml:9", "tls.certificate", "add private_key"]),
    ("[tls]\nself_signed = ['a b']", &["proxy.toml:9", "tls.self_signed[0]", "example.com"]),
    (
        "[[route]]\nname = 's'\npath = '/x'\nupstream = 'v'",
        &["proxy.toml:11", "route[1].upstream", "there is no upstream"],
    ),
    (
        "[[route]]\nname = 's'\npath = '/*'\nupstream = 'u'",
        &["proxy.toml:10", "route[1].path", "takes the same requests"],
    ),
    ("[[upstream]]\nname = 'v'\nendpoints = []", &["proxy.toml:10", "upstream[1].endpoints"]),
    ("[[upstream]]\nname = 'v'\nendpoints = ['nowhere']", &["proxy.toml:10", "upstream[1].endpoints[0]"]),
    ("[admin]\ntoken_file = 5", &["proxy.toml:9", "admin.token_file"]),
    ("x = [", &["proxy.toml:8", "is not TOML"]),
];

#[tokio::test]
async fn every_bad_file_is_refused_with_place_key_and_reason() {
    for (appended, told) in BAD {
        let config = format!("{GOOD}{appended}\n");
        for (command, (code, output)) in
            [("check", check(&config).await), ("proxy", refused_by_proxy(&config).await)]
        {
            assert_eq!(code, 2, "{command} of {appended}: {output}");
            for words in *told {
                assert!(output.contains(words), "{command} of {appended}: no {words:?} in {output}");
            }
        }
    }
}

#[tokio::test]
async fn all_problems_are_told_at_once() {
    let (code, output) = check(&format!("{GOOD}timout = '1s'\nretry = 'often'\n[cache]\nfils = 1\n")).await;
    assert_eq!(code, 2);
    for key in ["route[0].timout", "route[0].retry", "cache.fils"] {
        assert!(output.contains(key), "{output}");
    }
}

#[tokio::test]
async fn a_good_file_is_ok_and_no_file_is_not() {
    let (code, output) = check(GOOD).await;
    assert!(code == 0 && output.contains("ok"), "{output}");
    let mut absent = crate::bed::Process::start(["proxy", "--config", "/nonexistent/proxy.toml"]);
    assert_eq!(absent.ended().await.code(), Some(2));
    assert!(absent.log().contains("/nonexistent/proxy.toml"));
}

#[tokio::test]
async fn an_address_in_use_is_told() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = taken.local_addr().expect("it is bound");
    let (code, output) = refused_by_proxy(&format!("[listen]\nhttp = ['{address}']\n{GOOD}")).await;
    assert_eq!(code, 1, "{output}");
    assert!(output.contains(&address.to_string()), "{output}");
}
