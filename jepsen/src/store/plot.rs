//! A picture of a run: how long operations took and how many succeeded, over time, with the faults shaded.

use std::fmt::{self, Write as _};

use crate::check::coverage::{Span, spans};
use crate::history::{Call, Error, History, Kind};

const WIDTH: f64 = 1_200.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
/// The panel of latencies, and below it that of rates.
const LATENCY: Panel = Panel { top: 40.0, height: 300.0 };
const RATE: Panel = Panel { top: 380.0, height: 160.0 };
const HEIGHT: f64 = 590.0;
/// Latencies from 0.1 ms to 100 s, logarithmic.
const DECADES: std::ops::RangeInclusive<i32> = -4..=2;
/// More points are thinned out.
const POINTS: usize = 6_000;

struct Panel {
    top: f64,
    height: f64,
}

impl Panel {
    /// Where a share of the height is, from the bottom.
    fn y(&self, share: f64) -> f64 {
        self.top + self.height * (1.0 - share.clamp(0.0, 1.0))
    }
}

/// An operation that has ended.
struct Point {
    /// Seconds.
    at: f64,
    took: f64,
    kind: Kind,
}

struct Plot {
    out: String,
    seconds: f64,
}

/// The picture as SVG.
pub fn svg(history: &History, title: &str) -> Result<String, Error> {
    let points = points(history, &history.calls()?);
    let end = history.ops.last().map_or(0, |op| op.time);
    let mut plot = Plot { out: String::new(), seconds: seconds(end).max(1.0) };
    // A string takes everything.
    let _ = plot.draw(&points, &spans(history), title);
    Ok(plot.out)
}

fn seconds(nanos: i64) -> f64 {
    nanos as f64 / 1e9
}

fn points(history: &History, calls: &[Call]) -> Vec<Point> {
    let ended = calls.iter().filter_map(|call| {
        let (invoked, op) = (&history.ops[call.invoke], &history.ops[call.complete?]);
        let (at, took) = (seconds(op.time), seconds(op.time - invoked.time));
        Some(Point { at, took, kind: op.kind })
    });
    ended.collect()
}

fn color(kind: Kind) -> &'static str {
    match kind {
        Kind::Ok | Kind::Invoke => "#2b6cb0",
        Kind::Fail => "#c53030",
        Kind::Info => "#dd9b00",
    }
}

fn shade(kind: &str) -> &'static str {
    match kind {
        "partition" => "#f6ad55",
        "slow" => "#f6e05e",
        "kill" => "#fc8181",
        "pause" => "#b794f4",
        "transfer" => "#90cdf4",
        "member" => "#9ae6b4",
        _ => "#a0aec0",
    }
}

impl Plot {
    fn x(&self, at: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * at / self.seconds
    }

    fn draw(&mut self, points: &[Point], faults: &[Span], title: &str) -> fmt::Result {
        writeln!(
            self.out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"11\">"
        )?;
        writeln!(self.out, "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>")?;
        self.text(LEFT, 16.0, "start", title)?;
        faults.iter().try_for_each(|fault| self.fault(fault))?;
        self.axes()?;
        self.latencies(points)?;
        self.rates(points)?;
        writeln!(self.out, "</svg>")
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) -> fmt::Result {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        writeln!(self.out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>")
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64)) -> fmt::Result {
        let ((x1, y1), (x2, y2)) = (from, to);
        writeln!(
            self.out,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#cbd5e0\"/>"
        )
    }

    fn fault(&mut self, fault: &Span) -> fmt::Result {
        let from = self.x(seconds(fault.begin.1));
        let to = fault.end.map_or(WIDTH - RIGHT, |(_, time)| self.x(seconds(time)));
        for panel in [LATENCY, RATE] {
            writeln!(
                self.out,
                "<rect x=\"{from:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\" \
                 opacity=\"0.35\"><title>{} {}</title></rect>",
                panel.top,
                (to - from).max(1.0),
                panel.height,
                shade(&fault.kind),
                fault.kind,
                fault.what.to_string().replace('&', "&amp;").replace('<', "&lt;"),
            )?;
        }
        self.text(from, LATENCY.top - 4.0, "start", &fault.kind)
    }

    fn axes(&mut self) -> fmt::Result {
        let right = WIDTH - RIGHT;
        for decade in DECADES {
            let y = LATENCY.y(share(10f64.powi(decade)));
            self.line((LEFT, y), (right, y))?;
            let label = match decade {
                ..0 => format!("{} ms", 10f64.powi(decade + 3)),
                _ => format!("{} s", 10f64.powi(decade)),
            };
            self.text(LEFT - 4.0, y + 4.0, "end", &label)?;
        }
        let bottom = RATE.y(0.0);
        self.line((LEFT, bottom), (right, bottom))?;
        let step = (self.seconds / 12.0).ceil().max(1.0);
        let mut at = 0.0;
        while at <= self.seconds {
            let x = self.x(at);
            self.text(x, bottom + 16.0, "middle", &format!("{at} s"))?;
            at += step;
        }
        for (number, kind) in [Kind::Ok, Kind::Fail, Kind::Info].into_iter().enumerate() {
            let x = right - 150.0 + 50.0 * number as f64;
            let color = color(kind);
            writeln!(self.out, "<circle cx=\"{x}\" cy=\"12\" r=\"4\" fill=\"{color}\"/>")?;
            self.text(x + 8.0, 16.0, "start", kind.to_string().trim_start_matches(':'))?;
        }
        Ok(())
    }

    fn latencies(&mut self, points: &[Point]) -> fmt::Result {
        let every = points.len().div_ceil(POINTS).max(1);
        // What did not succeed is rare, and what one looks for.
        let shown = points
            .iter()
            .enumerate()
            .filter(|(at, point)| at % every == 0 || point.kind == Kind::Info)
            .map(|(_, point)| point);
        for point in shown {
            let (x, y) = (self.x(point.at), LATENCY.y(share(point.took)));
            let color = color(point.kind);
            writeln!(
                self.out,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"1.5\" fill=\"{color}\" opacity=\"0.6\"/>"
            )?;
        }
        Ok(())
    }

    /// Operations that ended in each second, by how.
    fn rates(&mut self, points: &[Point]) -> fmt::Result {
        let slots = self.seconds.ceil() as usize + 1;
        let count = |kind| {
            let mut counts = vec![0usize; slots];
            for point in points.iter().filter(|point| point.kind == kind) {
                counts[(point.at as usize).min(slots - 1)] += 1;
            }
            counts
        };
        let series = [Kind::Ok, Kind::Fail, Kind::Info].map(|kind| (kind, count(kind)));
        let most = series.iter().flat_map(|(_, counts)| counts).copied().max().unwrap_or(0).max(1);
        self.text(LEFT - 4.0, RATE.y(1.0) + 4.0, "end", &format!("{most}/s"))?;
        self.text(LEFT - 4.0, RATE.y(0.0) + 4.0, "end", "0")?;
        for (kind, counts) in series {
            let places = counts.iter().enumerate().map(|(second, &count)| {
                let x = self.x((second as f64 + 0.5).min(self.seconds));
                format!("{x:.1},{:.1}", RATE.y(count as f64 / most as f64))
            });
            let places = places.collect::<Vec<_>>().join(" ");
            let color = color(kind);
            writeln!(
                self.out,
                "<polyline points=\"{places}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>"
            )?;
        }
        Ok(())
    }
}

/// Where a latency stands between the least and the greatest decade.
fn share(seconds: f64) -> f64 {
    let (least, most) = (f64::from(*DECADES.start()), f64::from(*DECADES.end()));
    (seconds.max(1e-9).log10() - least) / (most - least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_and_faults_are_drawn() {
        let history = History::read(
            "{:time 0 :type :invoke :process 0 :f :read :value nil}
             {:time 10000000 :type :ok :process 0 :f :read :value 1}
             {:time 1000000000 :type :info :process :nemesis :f :kill :value {:begin 1 :what \"<node>\"}}
             {:time 1100000000 :type :invoke :process 0 :f :read :value nil}
             {:time 3000000000 :type :info :process 0 :f :read :value nil}
             {:time 4000000000 :type :info :process :nemesis :f :kill :value {:end 1 :proof \"gone\"}}",
        )
        .unwrap();
        let svg = svg(&history, "a & b").unwrap();
        // Two operations and the three of the legend; one fault in two panels, and the background.
        assert_eq!(svg.matches("<circle").count(), 5);
        assert_eq!(svg.matches("<rect").count(), 3);
        assert_eq!(svg.matches("<polyline").count(), 3);
        assert!(svg.contains("a &amp; b") && svg.contains("&lt;node>"));
        // 10 ms are a third of the way from 0.1 ms to 100 s.
        assert!(svg.contains(&format!("cy=\"{:.1}\"", LATENCY.y(1.0 / 3.0))));
        assert!(!svg.contains("NaN"));
    }
}
