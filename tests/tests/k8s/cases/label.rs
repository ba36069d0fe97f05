//! Enrolment of running pods and their release.

use anyhow::{Result, ensure};
use harness::{capture::Capture, wait};
use serde_json::json;

use crate::stage::{LIMIT, Stage};

const NS: &str = "labelled";
/// Bytes of the slow page: twelve seconds at the rate at which the server's image sends it.
const SIZE: usize = 1_200_000;

/// A connection that is open while its namespace's label comes, and one while it goes, end in order;
/// between the two the wire shows nothing readable.
pub fn a_label_that_comes_or_goes_resets_no_connection(stage: &mut Stage) -> Result<()> {
    stage.namespace(NS, false)?;
    stage.web(NS, "web", 1, &json!({"nodeName": "node-b"}))?;
    stage.idle(NS, "client", "node-a")?;
    let server = server(stage)?;
    let fill = format!("head -c {SIZE} /dev/zero > /usr/share/nginx/html/slow");
    stage.exec(NS, &server, &["/bin/sh", "-c", &fill])?;
    stage.until(NS, "client", "/usr/bin/curl -sf --max-time 5 -o /dev/null http://web/")?;

    slow(stage, "before")?;
    stage.label(NS, true)?;
    stage.enrolled(NS, true)?;
    let file = stage.cluster.root.join("labelled.pcap");
    let capture = Capture::start(&stage.cluster.place(), "br0", file)?;
    stage.until(NS, "client", "/usr/bin/curl -sf --max-time 5 -H 'secret: openwords' http://web/")?;
    let seen = capture.stop()?;
    ensure!(!seen.contains("openwords"), "a request of enrolled pods is readable on the wire");
    finished(stage, "before")?;

    slow(stage, "meshed")?;
    stage.label(NS, false)?;
    stage.enrolled(NS, false)?;
    finished(stage, "meshed")?;
    stage.until(NS, "client", "/usr/bin/curl -sf --max-time 5 -o /dev/null http://web/")?;
    Ok(())
}

fn server(stage: &Stage) -> Result<String> {
    let list = stage.cluster.get(&["-n", NS, "pods", "-l", "app=web"])?;
    Ok(list["items"][0]["metadata"]["name"].as_str().unwrap_or_default().to_string())
}

/// Starts to fetch the slow page and waits until some of it came.
fn slow(stage: &Stage, name: &str) -> Result<()> {
    let script = format!(
        "(/usr/bin/curl -s -o /tmp/{name} http://web/slow; echo $? > /tmp/{name}.status) \
         > /dev/null 2>&1 < /dev/null &"
    );
    stage.exec(NS, "client", &["/bin/sh", "-c", &script])?;
    stage.until(NS, "client", &format!("test -s /tmp/{name}")).map(drop)
}

fn finished(stage: &Stage, name: &str) -> Result<()> {
    let early = stage.exec(NS, "client", &["/bin/sh", "-c", &format!("test -e /tmp/{name}.status")]);
    ensure!(early.is_err(), "the page that began {name} ended before the label changed: nothing is proven");
    let script = format!("cat /tmp/{name}.status && wc -c < /tmp/{name}");
    let told =
        wait::until(LIMIT, "the slow page", || stage.exec(NS, "client", &["/bin/sh", "-c", &script]).ok())?;
    let words: Vec<&str> = told.split_whitespace().collect();
    ensure!(words == ["0", &SIZE.to_string()], "the page that began {name}: status and size {words:?}");
    Ok(())
}
