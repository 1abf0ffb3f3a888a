//! What is seen from outside: metrics, status, the access log.

use serde_json::Value;

use crate::bed::{Legacy, Node, Origin, Wire, ok, request, route, until, upstream};

#[tokio::test]
async fn metrics_count_each_request_by_route_protocol_method_and_code() {
    let legacy = Legacy::start(&["--long-dummy", "50ms..50ms"]).await;
    let health = "health = { path = \"/ping\", interval = \"100ms\", timeout = \"2s\" }";
    let routes = route("movie", "/api/movie/{id}", "methods = [\"GET\"]")
        + &route("long_dummy", "/long_dummy", "methods = [\"GET\", \"HEAD\"]\ncache = { max_age = \"60s\" }")
        + &route("rest", "/*", "");
    let node = Node::start(&(upstream(&[legacy.address], health) + &routes)).await;
    let mut wire = node.connect().await;
    for path in [
        "/api/movie/1",
        "/api/movie/2",
        "/api/movie/999999999",
        "/api/movie/1/x",
        "/long_dummy",
        "/long_dummy",
    ] {
        wire.get(path).await;
    }
    for bytes in [
        "POST /operation HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n{\"operation\": 1}",
        "BREW /x HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        wire.send(bytes).await;
        wire.answer().await;
    }
    request(node.http, "nonsense\r\n\r\n").await;
    let counted = async |labels: &[&str]| node.sample("forefront_proxy_requests_total", labels).await;
    for (labels, expected) in [
        (&["route=\"movie\"", "method=\"GET\"", "code=\"200\"", "protocol=\"h1\""][..], 2.0),
        (&["route=\"movie\"", "code=\"404\""], 1.0),
        (&["route=\"long_dummy\"", "method=\"GET\"", "code=\"200\""], 2.0),
        (&["route=\"rest\"", "method=\"POST\"", "code=\"200\""], 1.0),
        (&["route=\"rest\"", "method=\"other\"", "code=\"404\""], 1.0),
        (&["route=\"none\"", "code=\"400\""], 1.0),
    ] {
        assert_eq!(counted(labels).await, expected, "{labels:?} in {}", node.metrics().await);
    }
    let metrics = node.metrics().await;
    for family in [
        "forefront_proxy_request_duration_seconds_bucket",
        "forefront_proxy_requests_in_flight",
        "forefront_proxy_content_bytes_total",
        "forefront_proxy_retries_total",
        "forefront_listener_connections",
        "forefront_cache_",
        "forefront_upstream_",
        "forefront_build_info",
        "process_open_fds",
    ] {
        assert!(metrics.contains(family), "{family}");
    }
    assert_eq!(
        node.sample("forefront_proxy_request_duration_seconds_count", &["route=\"movie\""]).await,
        3.0
    );
    assert!(!metrics.contains("/api/movie"), "no path is a label");
    parses(&metrics);
}

/// Every line is a comment or a sample, every sample's family has a type.
fn parses(metrics: &str) {
    let mut types = Vec::new();
    for line in metrics.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            types.push(rest.split(' ').next().unwrap());
            continue;
        }
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let (name, value) = line.rsplit_once(' ').expect(line);
        value.parse::<f64>().expect(line);
        let name = name.split('{').next().unwrap();
        let known = |family: &str| {
            name.strip_prefix(family).is_some_and(|s| matches!(s, "" | "_bucket" | "_sum" | "_count"))
        };
        assert!(types.iter().any(|family| known(family)), "no type: {line}");
    }
    assert!(types.len() > 20);
}

#[tokio::test]
async fn the_access_log_has_a_line_for_each_request() {
    let origin = Origin::scripted(async |request, mut wire: Wire| {
        if request.target() == "/cut" {
            return None;
        }
        wire.send(ok("hello")).await;
        Some(wire)
    })
    .await;
    let cached = route("cached", "/cached", "cache = { max_age = \"60s\" }");
    let config = "[log]\naccess_sample = 1\n".to_owned()
        + &upstream(&[origin.address], "")
        + &route("rest", "/*", "")
        + &cached;
    let node = Node::start(&config).await;
    let hit = node.get("/cached").await;
    let passed = request(
        node.http,
        "GET /a?b HTTP/1.1\r\nHost: h\r\nUser-Agent: \"bed\"\r\nConnection: close\r\n\r\n",
    )
    .await;
    let cut = node.get("/cut").await;
    until("three lines", async || node.process.stdout().len() >= 3).await;
    let lines: Vec<Value> = node
        .process
        .stdout()
        .iter()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    let of = |answer: &crate::bed::Answer| {
        let id = answer.get("x-request-id").expect("each answer has an id").to_owned();
        lines
            .iter()
            .find(|line| line["request_id"] == id.as_str())
            .unwrap_or_else(|| panic!("{id} in {lines:?}"))
    };
    let line = of(&hit);
    assert_eq!(
        (&line["cache"], &line["route"], &line["status"]),
        (&"hit".into(), &"cached".into(), &200.into())
    );
    let line = of(&passed);
    assert_eq!(
        (&line["target"], &line["host"], &line["user_agent"]),
        (&"/a?b".into(), &"h".into(), &"\"bed\"".into())
    );
    assert_eq!((&line["bytes_out"], &line["endpoint"]), (&5.into(), &origin.address.to_string().into()));
    let line = of(&cut);
    assert_eq!((&line["status"], &line["failure"]), (&502.into(), &"connection_terminated".into()));
}

#[tokio::test]
async fn status_tells_endpoints_routes_and_the_cache() {
    let legacy = Legacy::start(&["--long-dummy", "50ms..50ms"]).await;
    let health = "health = { path = \"/ping\", interval = \"100ms\", timeout = \"2s\" }";
    let cached = route("long_dummy", "/long_dummy", "cache = { max_age = \"60s\" }");
    let node = Node::start(&(upstream(&[legacy.address], health) + &cached + &route("rest", "/*", ""))).await;
    node.get("/long_dummy").await;
    node.get("/").await;
    until("the endpoint is up", async || {
        node.status().await["upstreams"][0]["endpoints"][0]["state"] == "up"
    })
    .await;
    let status = node.status().await;
    assert_eq!(
        (&status["node"], &status["role"], &status["state"]),
        (&"bed".into(), &"proxy".into(), &"ready".into())
    );
    assert_eq!(status["upstreams"][0]["endpoints"][0]["address"], legacy.address.to_string().as_str());
    assert_eq!(status["cache"]["entries"], 1);
    assert!(status["cache"]["hits"].as_u64().is_some_and(|hits| hits >= 1));
    let routes = status["routes"].as_array().expect("a list");
    let of = |name: &str| routes.iter().find(|route| route["name"] == name).expect(name);
    assert_eq!((&of("rest")["requests"], &of("rest")["errors"]), (&1.into(), &0.into()));
    legacy.fault("sick").await;
    until("it is seen to be down", async || {
        node.status().await["upstreams"][0]["endpoints"][0]["state"] == "down"
    })
    .await;

    let mut command = crate::bed::Process::start(["status", "--admin", &format!("http://{}", node.admin)]);
    assert_eq!(command.ended().await.code(), Some(0));
    let table = command.stdout().join("\n");
    assert!(table.contains("long_dummy") && table.contains(&legacy.address.to_string()), "{table}");
}
