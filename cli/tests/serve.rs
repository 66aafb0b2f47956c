//! A server, and the commands against it, through the real binary and sockets.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use common::{Place, Ran, Running, feed, quipu};
use serde_json::Value;

/// Of Linux: opening a pipe does not wait for its other end.
const O_NONBLOCK: i32 = 0o4000;

/// A server on a port of its own.
struct Server {
    running: Running,
    url: String,
}

impl Server {
    fn start(place: &Place, port: u16) -> Self {
        let listen = format!("127.0.0.1:{port}");
        let mut command = place.command(&["serve", "--listen", &listen, "--log-filter", "warn"]);
        command.stderr(Stdio::null());
        let mut running = Running::new(command);
        let line = running.line();
        let url = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        Self { running, url }
    }

    fn port(&self) -> u16 {
        self.url.rsplit(':').next().unwrap().parse().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = quipu(args);
        command.args(["--server", &self.url]);
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        feed(self.command(args), "")
    }

    fn feed(&self, args: &[&str], input: impl AsRef<[u8]>) -> Ran {
        feed(self.command(args), input)
    }

    fn spawn(&self, args: &[&str]) -> Running {
        Running::new(self.command(args))
    }

    fn signal(&self, name: &str) {
        signal(self.running.child.id(), name);
    }
}

fn signal(process: u32, name: &str) {
    assert!(
        Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().unwrap().success()
    );
}

#[test]
fn every_command_does_through_a_server_what_it_does_on_a_directory() {
    let place = Place::new();
    let server = Server::start(&place, 0);
    let other = Place::new();
    let both = |args: &[&str], input: &str| {
        let (here, there) = (server.feed(args, input), other.feed(args, input));
        assert_eq!(
            (here.code, here.text()),
            (there.code, there.text()),
            "{args:?}\n{}\n{}",
            here.stderr,
            there.stderr
        );
        here
    };
    both(&["topics", "create", "t", "--codec", "lz4", "--retention-age-max", "30d"], "").ok();
    both(&["topics", "create", "t"], "").fails(4);
    both(&["publish", "t", "--batch-records", "2"], "0\n1\n2\n3\n4\n").ok();
    let line = "{\"k\":\"a\",\"y\":\"x\",\"t\":[\"u\",\"v\"]}\n";
    both(
        &[
            "publish",
            "t",
            "-F",
            "ndjson",
            "--key-field",
            "k",
            "--type-field",
            "y",
            "--tag-field",
            "t",
            "-H",
            "h=1",
        ],
        line,
    )
    .ok();
    both(&["publish", "nope"], "x").fails(3);
    both(&["publish", "u", "--create"], "x").ok();
    for args in [
        &["--from", "3"][..],
        &["--from", "-2"],
        &["--from", "1", "--until", "3"],
        &["--until", "-1"],
        &["--from", "1h"],
        &["--until", "1h"],
        &["--reverse"],
        &["--reverse", "--count", "2"],
        &["--reverse", "--from", "4", "--until", "2"],
        &["--key", "a"],
        &["--key-prefix", "a", "--from", "-1"],
        &["--type", "x", "--tag", "u,v", "-H", "h=1"],
        &["--tag", "w"],
        &["--count", "2"],
        &["--from", "latest"],
        &["--written"],
    ] {
        both(&[&["read", "t", "-f", "%o %k %y %g %h %v\\n"], args].concat(), "").ok();
    }
    both(&["read", "t", "--from", "99"], "").fails(6);
    both(&["tail", "t", "-n", "2", "--raw"], "").ok();
    both(&["tail", "t", "-n", "1", "--key", "a", "--raw"], "").ok();
    both(&["topics", "list"], "").ok();
    both(&["topics", "alter", "t", "--retention-age-max", "none", "--retention-records-max", "1000"], "")
        .ok();
    both(&["topics", "alter", "t", "--compact", "--compaction-lag-min", "1h"], "").ok();
    let settings = |ran: Ran| serde_json::from_slice::<Value>(&ran.stdout).unwrap()["settings"].clone();
    let describe = ["topics", "describe", "t", "--json"];
    assert_eq!(settings(server.run(&describe).ok()), settings(other.run(&describe).ok()));
    both(&["topics", "trim", "t", "--before", "2"], "").ok();
    both(&["read", "t", "--from", "0"], "").fails(6);
    server.run(&["topics", "compact", "t", "--dry-run"]).ok();
    server.run(&["topics", "verify", "t"]).ok();
    server.run(&["status"]).ok();
    both(&["topics", "delete", "u"], "").ok();
    both(&["read", "u"], "").fails(3);
    both(&["topics", "create", "../x"], "").fails(2);
    // A directory that a server holds can be read beside it.
    assert_eq!(
        place.run(&["read", "t", "--raw"]).ok().stdout,
        server.run(&["read", "t", "--raw"]).ok().stdout
    );
    place.feed(&["publish", "t"], "x").fails(7);
}

#[test]
fn an_export_goes_from_server_to_server() {
    let (first, second) = (Place::new(), Place::new());
    let (first, second) = (Server::start(&first, 0), Server::start(&second, 0));
    first.feed(&["publish", "t", "--create", "-K", ":"], "a:1\nb:2\n").ok();
    let export = first.run(&["export", "t"]).ok();
    second.feed(&["import", "t"], &export.stdout).ok();
    let shown = ["read", "t", "-f", "%o %i %k %v\\n"];
    assert_eq!(first.run(&shown).ok().text(), second.run(&shown).ok().text());
}

#[test]
fn a_follower_gets_each_record_once_over_a_killed_server() {
    let place = Place::new();
    let mut server = Server::start(&place, 0);
    let port = server.port();
    server.feed(&["publish", "t", "--create"], "0\n").ok();
    let mut tail = server.spawn(&["tail", "-f", "t", "--template", "%o %v\\n", "--quiet"]);
    assert_eq!(tail.line(), "0 0");
    for round in 1..4 {
        server.signal("KILL");
        server.running.child.wait().unwrap();
        server = Server::start(&place, port);
        server.feed(&["publish", "t"], format!("{round}\n")).ok();
        assert_eq!(tail.line(), format!("{round} {round}"));
    }
}

#[test]
fn a_publisher_goes_on_over_killed_servers_without_loss_and_without_repeats() {
    let place = Place::new();
    let mut server = Server::start(&place, 0);
    let port = server.port();
    server.run(&["topics", "create", "t"]).ok();
    let mut publish = server.spawn(&["publish", "t", "--batch-records", "7", "--quiet"]);
    let mut tail = server.spawn(&["tail", "-f", "t", "--from", "earliest", "--raw", "--quiet"]);
    let mut sent = 0;
    for round in 0..4 {
        let lines: String = (sent..sent + 500).map(|number| format!("{number}\n")).collect();
        sent += 500;
        publish.send(&lines);
        if round > 0 {
            // Some of this is on its way now.
            server.signal("KILL");
            server.running.child.wait().unwrap();
            server = Server::start(&place, port);
        }
        // Followed to the last one, so that each round begins with an idle publisher.
        for number in sent - 500..sent {
            assert_eq!(tail.line(), number.to_string());
        }
    }
    drop(publish.stdin.take());
    assert!(publish.child.wait().unwrap().success());
    let all = server.run(&["read", "t", "--raw"]).ok().lines();
    assert_eq!(all, (0..sent).map(|number: u32| number.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_signal_ends_a_server_in_order_and_followers_are_told() {
    let place = Place::new();
    let mut server = Server::start(&place, 0);
    server.feed(&["publish", "t", "--create"], "x\n").ok();
    let mut tail = server.spawn(&["tail", "-f", "t", "--raw", "--retry-for", "100ms"]);
    assert_eq!(tail.line(), "x");
    server.signal("TERM");
    assert_eq!(server.running.child.wait().unwrap().code(), Some(0));
    // It waits as long as it was told, and says so with its exit code.
    assert_eq!(tail.child.wait().unwrap().code(), Some(5));
    let report = place.run(&["verify", "--json"]).ok();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["closed_properly"], true);
}

#[test]
fn a_second_signal_ends_a_server_at_once() {
    let place = Place::new();
    let mut command = place.command(&["serve", "--listen", "127.0.0.1:0", "--drain-time-max", "1h"]);
    command.stderr(Stdio::piped());
    let mut server = Running::new(command);
    let address = server.line().trim_start_matches("listening on http://").to_owned();
    let mut log = BufReader::new(server.child.stderr.take().unwrap());
    // A client that has begun a call and never goes on keeps the server from ending.
    let mut silent = std::net::TcpStream::connect(address).unwrap();
    silent
        .write_all(b"POST /quipu.v1.LogService/Append HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc-web\r\ncontent-length: 100\r\n\r\n")
        .unwrap();
    signal(server.child.id(), "INT");
    let mut line = String::new();
    while !line.contains("draining") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "it ended by itself");
    }
    signal(server.child.id(), "INT");
    assert_eq!(server.child.wait().unwrap().code(), Some(130));
}

#[test]
fn nobody_answering_is_said_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    feed(quipu(&["read", "t", "--server", &url]), "").fails(5).says("quipu serve");
    feed(quipu(&["read", "t", "--server", "not a url"]), "").fails(2);
    let mut command = quipu(&["read", "t"]);
    command.env("QUIPU_SERVER", &url);
    feed(command, "").fails(5).says(&url);
}

#[test]
fn a_server_refuses_what_it_cannot_do() {
    let place = Place::new();
    let refused = |args: &[&str], code: i32, says: &str| {
        place.run(&[&["serve"], args].concat()).fails(code).says(says);
    };
    refused(&["--listen", "0.0.0.0:0"], 2, "--insecure");
    refused(&["--metrics-listen", "0.0.0.0:0"], 2, "--insecure");
    refused(&["--listen", "nowhere"], 2, "listen");
    refused(&["--tls-certificate", "c.pem"], 2, "tls_key");
    refused(&["--reads-max", "0"], 2, "reads_max must be 1 to 256 (--reads-max)");
    refused(&["--journal-file-bytes", "1"], 2, "journal_file_bytes");
    refused(&["--log-format", "xml"], 2, "human or json");
    refused(&["--config", "/nowhere.toml"], 3, "/nowhere.toml");
    let file = place.file("q.toml", "\nlistne = \"127.0.0.1:0\"\n");
    refused(&["--config", &file], 2, "line 2: there is no setting \"listne\"; did you mean \"listen\"?");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&["--listen", &address], 7, &address);
    let server = Server::start(&place, 0);
    refused(&["--listen", "127.0.0.1:0"], 7, "in use");
    drop(server);
}

#[test]
fn the_configuration_in_effect_is_shown_with_its_sources() {
    let place = Place::new();
    let file = place.file("q.toml", "reads_max = 4\ntail_bytes_max = \"1MiB\"\n");
    let mut command =
        place.command(&["serve", "--config", &file, "--print-config", "--connections-max", "9"]);
    command.env("QUIPU_TAIL_BYTES_MAX", "2MiB").env("QUIPU_REEDS_MAX", "1");
    let ran = feed(command, "").ok().says("QUIPU_READS_MAX");
    let line =
        |name: &str| ran.lines().into_iter().find(|line| line.starts_with(&format!("{name} ="))).unwrap();
    assert!(line("reads_max").contains("= 4 ") && line("reads_max").contains("q.toml, line 1"));
    assert!(
        line("tail_bytes_max").contains("\"2MiB\"")
            && line("tail_bytes_max").contains("QUIPU_TAIL_BYTES_MAX")
    );
    assert!(
        line("connections_max").contains("= 9 ") && line("connections_max").contains("--connections-max")
    );
    assert!(line("listen").contains("# default"));
    // What is shown is a configuration: the same again.
    let shown = place.file("shown.toml", &ran.stdout);
    let again = feed(quipu(&["serve", "--config", &shown, "--print-config", "--json"]), "").ok();
    let value = |name: &str| {
        let lines = again.lines();
        let rows = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.into_iter().find(|row| row["name"] == name).unwrap()["value"].clone()
    };
    assert_eq!((value("reads_max"), value("tail_bytes_max")), ("4".into(), "2MiB".into()));
}

/// It printed them as if a server could be run with them, and where a bound was broken not who said so.
#[test]
fn a_configuration_that_no_server_takes_is_refused_with_its_place_also_when_it_is_to_be_printed() {
    let place = Place::new();
    for (file, says) in [
        ("\nreads_max = 0\n", "reads_max must be"),
        ("\njournal_bytes_max = 1\n", "journal_bytes_max is 1"),
        ("\nlisten = \"0.0.0.0:0\"\n", "say --insecure"),
        ("\nmetrics_listen = \"0.0.0.0:0\"\n", "say --insecure"),
        ("\ntls_key = \"key.pem\"\n", "needs both"),
        ("\nlog_filter = \"info=info=info\"\n", "log_filter"),
        ("\nweb_origins = \"https://example.com/app\"\n", "no origin"),
        ("\ncreate_master_key = true\n", "master_key"),
        ("\ndata = \"\"\n", "name a directory"),
    ] {
        let path = place.file("q.toml", file);
        for more in [&["--print-config"][..], &["--listen", "127.0.0.1:0"]] {
            if file.contains("\nlisten") && more.len() > 1 {
                continue;
            }
            let args = [&["serve", "--config", &path], more].concat();
            let mut command = quipu(&args);
            command.current_dir(place.dir.path());
            feed(command, "").fails(2).says(says).says("q.toml, line 2");
        }
    }
}

#[test]
fn a_measurement_that_is_interrupted_leaves_no_topic() {
    let place = Place::new();
    let server = Server::start(&place, 0);
    let topics = || server.run(&["topics", "list", "--json"]).ok().lines().len();
    for name in ["INT", "TERM"] {
        let mut bench = server.command(&["bench", "latency", "--seconds", "3600", "--rate", "1"]);
        bench.stderr(Stdio::piped());
        let bench = bench.stdout(Stdio::null()).spawn().unwrap();
        while topics() == 0 {}
        signal(bench.id(), name);
        let ran = Ran::from(bench.wait_with_output().unwrap());
        ran.fails(130).says(name);
        assert_eq!(topics(), 0);
    }
}

/// They need not wait for a server to end.
#[test]
fn producers_are_listed_beside_the_server_that_holds_the_store() {
    let place = Place::new();
    let server = Server::start(&place, 0);
    server.feed(&["publish", "t", "--create", "--producer", "import"], "one\n").ok();
    let listed = server.run(&["producers", "list", "--json"]).ok().lines();
    assert_eq!(place.run(&["producers", "list", "--json"]).ok().lines(), listed);
    assert_eq!(listed.len(), 1);
    place.run(&["producers", "forget", "import"]).fails(7);
}

#[test]
fn logs_are_json_on_request() {
    let place = Place::new();
    let mut command = place.command(&["serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--json"]);
    command.stderr(Stdio::piped());
    let mut server = Running::new(command);
    let announced: Value = serde_json::from_str(&server.line()).unwrap();
    assert!(announced["url"].as_str().unwrap().starts_with("http://127.0.0.1:"));
    let mut log = String::new();
    BufReader::new(server.child.stderr.take().unwrap()).read_line(&mut log).unwrap();
    let event: Value = serde_json::from_str(&log).unwrap();
    assert_eq!(event["level"], "INFO");
}

/// A server answered with exit code 2 what a directory answered with 13.
#[cfg(not(feature = "zstd"))]
#[test]
fn a_codec_that_the_build_lacks_is_refused_alike_by_a_server_and_on_a_directory() {
    let place = Place::new();
    let server = Server::start(&place, 0);
    server.run(&["topics", "create", "t"]).ok();
    let other = Place::new();
    other.run(&["topics", "create", "t"]).ok();
    for args in [["topics", "create", "u"], ["topics", "alter", "t"]] {
        let args = [&args[..], &["--codec", "zstd", "--json"]].concat();
        for ran in [server.run(&args), other.run(&args)] {
            let error: Value = serde_json::from_str(&ran.fails(13).stderr).unwrap();
            assert_eq!(error["error"]["reason"], "CODEC_UNAVAILABLE");
        }
    }
    assert_eq!(server.run(&["topics", "list", "--json"]).ok().lines().len(), 1);
    let help = server.run(&["topics", "create", "--help"]).ok().text();
    assert!(help.contains("lacks zstd"), "{help}");
}

#[test]
fn a_shutdown_without_any_time_is_refused_before_anything_is_opened() {
    let place = Place::new();
    // An address that is refused as well, so that it ends also if it takes the time.
    let args = ["serve", "--drain-time-max", "0s", "--listen", "0.0.0.0:0"];
    place.run(&args).fails(2).says("drain_time_max must be 10 ms to 24 h");
    assert!(!place.store().exists());
}

/// The message of the server has all violations, and the client added them once more.
#[test]
fn what_is_wrong_with_a_request_is_said_once() {
    let place = Place::new();
    let server = Server::start(&place, 0);
    let ran = server.run(&["topics", "create", "t", "--segment-bytes-max", "1"]).fails(2);
    assert_eq!(ran.stderr.matches("settings.segment_bytes_max").count(), 1, "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("must be").count(), 1, "{}", ran.stderr);
}

/// The journal has only offsets that are reserved for such a topic. They were counted as its records.
#[test]
fn inspect_counts_no_records_of_a_topic_in_memory() {
    let place = Place::new();
    place.run(&["topics", "create", "m", "--memory", "1MiB"]).ok();
    let server = Server::start(&place, 0);
    server.feed(&["publish", "m"], "one\n").ok();
    let inspected = place.run(&["inspect", "m", "--json"]).ok();
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert!(inspected["log_end_offset"].as_u64().unwrap() > 0, "{inspected}");
    assert_eq!(inspected["records_in_journal"], 0);
    let drawn = place.run(&["inspect"]).ok().text();
    assert!(!drawn.contains("in the journal"), "{drawn}");
}

#[test]
fn the_bench_measures_and_leaves_no_topic() {
    let place = Place::new();
    let server = Server::start(&place, 0);
    let ran = server.run(&["bench", "--records", "2000", "--rate", "200", "--seconds", "1", "--json"]).ok();
    let rows: Vec<Value> = ran.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |name: &str| rows.iter().find(|row| row["bench"] == name).unwrap();
    assert_eq!((&of("append")["records"], &of("replay")["records"]), (&2000.into(), &2000.into()));
    assert_eq!(of("latency")["records"], 200);
    assert!(of("latency")["latency_micros"]["p99"].as_u64().unwrap() > 0);
    server.run(&["bench", "append", "--records", "100"]).ok();
    assert_eq!(server.run(&["topics", "list", "--json"]).ok().stdout, b"");
    place.run(&["bench"]).fails(2);
}

#[test]
fn the_demonstration_runs_to_its_end_and_cleans_up() {
    let place = Place::new();
    let mut command = quipu(&["demo"]);
    command.env("TMPDIR", place.dir.path());
    let ran = feed(command, "").ok();
    assert!(
        ran.text().contains("Nothing that was acknowledged is gone") && ran.text().contains("intact"),
        "{}",
        ran.text()
    );
    assert_eq!(std::fs::read_dir(place.dir.path()).unwrap().count(), 0);
}

#[test]
fn the_demonstration_as_json_has_its_steps_commands_and_their_output() {
    let place = Place::new();
    let mut command = quipu(&["demo", "--keep", "--json"]);
    command.env("TMPDIR", place.dir.path());
    let ran = feed(command, "").ok();
    let lines: Vec<Value> = ran.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let has = |name: &str, part: &str| {
        assert!(
            lines.iter().any(|line| line[name].as_str().is_some_and(|text| text.contains(part))),
            "{lines:?}"
        );
    };
    has("step", "Nothing that was acknowledged is gone");
    has("command", "quipu read orders --key order-7");
    has("output", "listening on ");
    has("output", "intact");
    has("kept", place.dir.path().to_str().unwrap());
}

#[test]
fn a_server_with_certificates_takes_only_clients_that_it_can_trust() {
    let place = Place::new();
    let pem = |name: &str| format!("{}/../server/tests/server/tls/{name}", env!("CARGO_MANIFEST_DIR"));
    let (certificate, key, ca) = (pem("server.pem"), pem("server.key"), pem("ca.pem"));
    let mut command = place.command(&["serve", "--listen", "127.0.0.1:0", "--tls-certificate", &certificate]);
    command.args(["--tls-key", &key, "--tls-client-ca", &ca]).stderr(Stdio::null());
    let mut server = Running::new(command);
    let url = server.line().trim_start_matches("listening on ").replace("127.0.0.1", "localhost");
    assert!(url.starts_with("https://"), "{url}");
    let run = |args: &[&str]| {
        let mut command = quipu(&["topics", "list", "--server", &url]);
        command.args(args);
        feed(command, "")
    };
    let (client_certificate, client_key) = (pem("client.pem"), pem("client.key"));
    run(&["--ca-cert", &ca, "--client-cert", &client_certificate, "--client-key", &client_key]).ok();
    run(&["--ca-cert", &ca]).fails(5);
    run(&["--client-cert", &client_certificate, "--client-key", &client_key]).fails(5);
    run(&["--ca-cert", "/nowhere.pem"]).fails(3);
    // It was taken for an authority that vouches for nobody, and the server for an unknown one.
    let garbage = place.file("garbage.pem", "no certificate\n");
    run(&["--ca-cert", &garbage]).fails(2).says("garbage.pem holds no certificate");
    run(&["--client-cert", &client_certificate]).fails(2);
}

// It said that it was ready, and read the certificate only then.
#[test]
fn a_certificate_that_cannot_be_used_is_refused_before_the_server_says_that_it_is_ready() {
    let place = Place::new();
    let pem = |name: &str| format!("{}/../server/tests/server/tls/{name}", env!("CARGO_MANIFEST_DIR"));
    let garbage = place.file("garbage.pem", "no certificate\n");
    let (certificate, key, ca) = (pem("server.pem"), pem("server.key"), pem("ca.pem"));
    for (certificate, key, ca, code, says) in [
        ("/nowhere.pem", &*key, &*ca, 3, "/nowhere.pem"),
        (&*certificate, "/nowhere.key", &ca, 3, "/nowhere.key"),
        (&certificate, &key, "/nowhere-ca.pem", 3, "/nowhere-ca.pem"),
        (&garbage, &key, &ca, 2, "garbage.pem"),
        (&certificate, &garbage, &ca, 2, "garbage.pem"),
        // It blamed the certificate.
        (&certificate, &key, &garbage, 2, "garbage.pem holds no certificate"),
        // The key of somebody else.
        (&certificate, &pem("client.key"), &ca, 2, "client.key"),
    ] {
        let mut command =
            place.command(&["serve", "--listen", "127.0.0.1:0", "--tls-certificate", certificate]);
        command.args(["--tls-key", key, "--tls-client-ca", ca]);
        let ran = feed(command, "").fails(code).says(says);
        assert_eq!(ran.text(), "", "it was not ready");
    }
    assert!(!place.store().exists(), "nothing was made");
}

// Signals were caught before the start and looked at only behind it: a disk that did not answer made a server that
// nothing but SIGKILL could end.
#[test]
fn a_server_whose_start_hangs_ends_at_a_signal() {
    let place = Place::new();
    let pipe = place.path("certificate.pem");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let key = format!("{}/../server/tests/server/tls/server.key", env!("CARGO_MANIFEST_DIR"));
    let mut command =
        place.command(&["serve", "--listen", "127.0.0.1:0", "--tls-certificate", pipe.to_str().unwrap()]);
    command.args(["--tls-key", &key]).stderr(Stdio::null());
    let mut server = Running::new(command);
    // Opens as soon as the server has opened its end, where it waits for what never comes.
    let mut write = std::fs::OpenOptions::new();
    write.write(true).custom_flags(O_NONBLOCK);
    let _hanging = loop {
        match write.open(&pipe) {
            Ok(pipe) => break pipe,
            Err(_) => assert!(server.child.try_wait().unwrap().is_none(), "it ended by itself"),
        }
        std::thread::yield_now();
    };
    signal(server.child.id(), "TERM");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert_eq!(server.line(), "", "it was never ready");
}

#[test]
fn the_help_has_every_setting_with_its_default_its_variable_and_the_units() {
    let help = feed(quipu(&["help", "serve"]), "").ok().text();
    assert_eq!(feed(quipu(&["serve", "--help"]), "").ok().text(), help);
    // Wrapped as the terminal wants it.
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let help = words(&help);
    let rows = feed(quipu(&["serve", "--print-config", "--json"]), "").ok().lines();
    assert!(rows.len() > 30);
    for row in rows {
        let row: Value = serde_json::from_str(&row).unwrap();
        let (name, default) = (row["name"].as_str().unwrap(), row["value"].as_str().unwrap());
        let variable = format!("QUIPU_{}", name.to_uppercase());
        assert!(help.contains(&format!("--{}", name.replace('_', "-"))), "{name}");
        assert!(help.contains(&format!("[default: {default}] [env: {variable}]")), "{name}: {help}");
    }
    for unit in ["SIZE bytes", "KiB", "DURATION with ms", "true or false"] {
        assert!(help.contains(unit), "{unit}");
    }
}

/// A store with three batches, the second of which is damaged: offsets 2 and 3.
fn damaged(place: &Place) {
    place
        .feed(&["publish", "t", "--create", "--batch-records", "2", "--key", "k"], "0\n1\n2\n3\n4\n5\n")
        .ok();
    let (path, bytes) = common::files(&place.store())
        .into_iter()
        .find(|(path, _)| path.extension().is_some_and(|name| name == "segment"))
        .unwrap();
    let dump = feed(quipu(&["dump", path.to_str().unwrap(), "--no-records"]), "").ok().lines();
    let line = dump.iter().find(|line| line.contains("batch, offsets 2 to 4")).unwrap();
    let position: usize = line.split(':').next().unwrap().parse().unwrap();
    let mut bytes = bytes;
    bytes[position + 50] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

// A follower through a server ended at the first damaged record, and never showed what is intact behind it.
#[test]
fn damage_is_named_and_passed_over_alike_by_every_way_of_reading() {
    let (place, other) = (Place::new(), Place::new());
    damaged(&place);
    damaged(&other);
    let server = Server::start(&place, 0);
    for args in [
        &["read", "t"][..],
        &["read", "t", "--from", "2"],
        &["read", "t", "--from", "3"],
        &["read", "t", "--reverse"],
        &["tail", "t"],
        &["tail", "t", "--key", "k", "-n", "3"],
        &["tail", "-f", "t", "--from", "earliest", "--count", "4"],
        &["tail", "-f", "t", "--from", "2", "--count", "2"],
        &["tail", "-f", "t", "--from", "3", "--until", "5"],
        &["tail", "-f", "t", "--from", "earliest", "--until", "3"],
        &["tail", "-f", "t", "--key", "k", "-n", "3", "--count", "3"],
    ] {
        let args = [args, &["--template", "%o %v\\n"]].concat();
        let (there, here) = (server.run(&args).fails(8), other.run(&args).fails(8));
        assert_eq!(there.text(), here.text(), "{args:?}\n{}\n{}", there.stderr, here.stderr);
        for ran in [there, here] {
            let ran = ran.says("to 4 (exclusive) of topic t are damaged").says(".segment at position");
            assert!(!ran.lines().iter().any(|line| line.starts_with('2') || line.starts_with('3')));
        }
    }
    // What comes later is shown when it comes.
    let mut command = server.command(&["tail", "-f", "t", "--from", "earliest", "--raw", "--count", "5"]);
    command.stderr(Stdio::piped());
    let mut tail = Running::new(command);
    for line in ["0", "1", "4", "5"] {
        assert_eq!(tail.line(), line);
    }
    server.feed(&["publish", "t"], "6\n").ok();
    assert_eq!(tail.line(), "6");
    assert_eq!(tail.child.wait().unwrap().code(), Some(8));
    // For machines.
    let ran = server.run(&["read", "t", "--json"]).fails(8);
    let told: Value = serde_json::from_str(ran.stderr.lines().next().unwrap()).unwrap();
    assert_eq!((&told["damaged"]["from"], &told["damaged"]["to"]), (&2.into(), &4.into()));
    assert!(told["damaged"]["message"].as_str().unwrap().contains(".segment"), "{told}");
}

// The end was compared with how far the message that came last went, and the batches in it that were not printed yet
// were left out.
#[test]
fn a_follower_with_an_end_shows_everything_before_it() {
    let place = Place::new();
    let server = Server::start(&place, 0);
    let lines: String = (0..20).map(|number| format!("{number}\n")).collect();
    server.feed(&["publish", "t", "--create", "--batch-records", "1"], lines).ok();
    for until in 1..20_usize {
        let args = ["tail", "-f", "t", "--from", "earliest", "--until", &until.to_string(), "--raw"];
        let expected: Vec<String> = (0..until).map(|number| number.to_string()).collect();
        assert_eq!(server.run(&args).ok().lines(), expected);
    }
}

#[test]
fn a_publisher_with_a_name_that_is_killed_again_and_again_publishes_its_input_exactly_once() {
    let place = Place::new();
    let mut server = Server::start(&place, 0);
    server.run(&["topics", "create", "t"]).ok();
    let lines: Vec<String> = (0..205).map(|number| format!("line {number}")).collect();
    let args = ["publish", "t", "--producer", "import", "--batch-records", "10"];
    let end = |server: &Server| {
        let described = server.run(&["topics", "describe", "t", "--json"]).ok();
        serde_json::from_str::<Value>(&described.text()).unwrap()["log_end_offset"].as_u64().unwrap()
    };
    for kill in 1..=4 {
        // It gets a part of a batch that it must keep to itself.
        let mut publisher = server.spawn(&args);
        lines[..kill * 40 + 7].iter().for_each(|line| publisher.send(&format!("{line}\n")));
        while end(&server) < kill as u64 * 40 {
            assert!(publisher.child.try_wait().unwrap().is_none(), "it waits for more");
        }
        drop(publisher);
        if kill == 2 {
            let port = server.port();
            server.signal("KILL");
            drop(server);
            server = Server::start(&place, port);
        }
    }
    let input = place.file("input", lines.join("\n"));
    let whole = [&args[..2], &[&input], &args[2..], &["--json"]].concat();
    let report: Value = serde_json::from_str(&server.run(&whole).ok().text()).unwrap();
    assert_eq!((&report["records"], &report["published_before"]), (&45.into(), &160.into()));
    assert_eq!((&report["first_offset"], &report["next_offset"]), (&160.into(), &205.into()));
    let report: Value = serde_json::from_str(&server.run(&whole).ok().text()).unwrap();
    assert_eq!((&report["records"], &report["published_before"]), (&0.into(), &205.into()));
    assert_eq!(server.run(&["read", "t", "--raw"]).ok().lines(), lines);

    // Another input, or one that is shorter.
    server.feed(&args, lines[1..].join("\n")).fails(4).says("--producer-epoch");
    server.feed(&args, lines[..50].join("\n")).fails(4).says("ends 16 batches before what is published");
    assert_eq!(end(&server), 205);
    let listed = server.run(&["producers", "list", "--json"]).ok().lines();
    let named: Vec<Value> = listed.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(named, [serde_json::json!({ "producer": "import", "epoch": 0, "last_sequence": 20 })]);
    let anew = [&args[..], &["--producer-epoch", "1"]].concat();
    server.feed(&anew, "another\n").ok();
    let fenced = [&args[..], &["--producer-epoch", "0"]].concat();
    server.feed(&fenced, "x\n").fails(4).says("higher epoch");
    server.run(&["producers", "forget", "import"]).ok();
    server.run(&["producers", "forget", "import"]).fails(3).says("import");
    assert_eq!(end(&server), 206);
}
