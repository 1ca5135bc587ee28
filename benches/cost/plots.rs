//! Plots of what was measured, as SVG into docs/plots.

use plotters::coord::types::RangedCoordf64;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use testbed::fetch;

use crate::closes::{Closes, HOPS};
use crate::floods::{self, size_name};
use crate::measure::{Row, Spread};
use crate::memory::{Memory, Use};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const COLORS: [RGBColor; 6] = [
    RGBColor(150, 150, 150),
    RGBColor(214, 126, 44),
    RGBColor(38, 110, 182),
    RGBColor(60, 150, 90),
    RGBColor(150, 90, 160),
    RGBColor(140, 110, 70),
];

/// Bars in groups; a bar has a whisker from its low to its high.
struct Bars {
    title: String,
    unit: &'static str,
    groups: Vec<String>,
    /// Name, index of its colour, and a bar for each group.
    series: Vec<(String, usize, Vec<Option<Spread>>)>,
    /// Lines that no bar should pass: from, to, height.
    limits: Vec<(f64, f64, f64)>,
    /// Heights are powers of ten.
    logarithmic: bool,
    decimals: usize,
}

impl Bars {
    fn draw(&self, area: &Area) {
        let height = |value: f64| if self.logarithmic { value.max(0.1).log10() } else { value };
        let highest = self
            .series
            .iter()
            .flat_map(|(_, _, bars)| bars.iter().flatten())
            .fold(0.0_f64, |top, bar| top.max(bar.high).max(bar.median));
        let (bottom, top) = if self.logarithmic {
            (-1.0, highest.log10().ceil() + 0.6)
        } else {
            // Room for the legend.
            (0.0, highest * (1.2 + 0.1 * self.series.len().saturating_sub(1) as f64))
        };
        let groups = self.groups.len() as f64;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 17))
            .margin(12)
            .x_label_area_size(30)
            .y_label_area_size(62)
            .build_cartesian_2d(0.0..groups, bottom..top)
            .expect("a chart");
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(WHITE)
            .x_labels(0)
            .y_labels(6)
            .y_desc(self.unit)
            .axis_desc_style(("sans-serif", 13))
            .label_style(("sans-serif", 12))
            .y_label_formatter(&|y| {
                if self.logarithmic {
                    format!("{}", 10_f64.powf(*y))
                } else {
                    let digits = if top < 5.0 { 1 } else { 0 };
                    format!("{y:.digits$}")
                }
            })
            .draw()
            .expect("a chart");
        let below = TextStyle::from(("sans-serif", 13)).pos(Pos::new(HPos::Center, VPos::Top));
        for (i, group) in self.groups.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(i as f64 + 0.5, bottom));
            let (left, up) = area.get_base_pixel();
            area.draw(&Text::new(&group[..], (x - left, y - up + 8), below.clone()))
                .expect("a label");
        }
        let width = 0.8 / self.series.len() as f64;
        let above = TextStyle::from(("sans-serif", 11)).pos(Pos::new(HPos::Center, VPos::Bottom));
        for (k, (name, color, bars)) in self.series.iter().enumerate() {
            let color = COLORS[*color];
            let of_group = bars.iter().enumerate().filter_map(|(i, bar)| Some((i, (*bar)?)));
            let left = |i: usize| i as f64 + 0.1 + width * k as f64;
            let boxes = of_group.clone().map(|(i, bar)| {
                let corners = [(left(i), bottom), (left(i) + width * 0.92, height(bar.median))];
                Rectangle::new(corners, color.filled())
            });
            chart.draw_series(boxes).expect("a chart").label(name).legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled())
            });
            for (i, bar) in of_group {
                let middle = left(i) + width * 0.46;
                let whisker = [(middle, height(bar.low)), (middle, height(bar.high))];
                let line = PathElement::new(whisker, BLACK.stroke_width(1));
                chart.draw_series([line]).expect("a chart");
                let number = match bar.median {
                    large if self.logarithmic && large >= 100.0 => format!("{large:.0}"),
                    small if self.logarithmic => format!("{small:.1}"),
                    value => format!("{value:.*}", self.decimals),
                };
                let at = (middle, height(bar.high.max(bar.median)) + (top - bottom) * 0.008);
                chart.draw_series([Text::new(number, at, above.clone())]).expect("a chart");
            }
        }
        let limits = self.limits.iter().map(|(from, to, value)| {
            PathElement::new([(*from, height(*value)), (*to, height(*value))], RED.stroke_width(2))
        });
        let limits = chart.draw_series(limits).expect("a chart");
        if !self.limits.is_empty() {
            let dash = |(x, y)| PathElement::new([(x, y), (x + 12, y)], RED.stroke_width(2));
            limits.label("at most").legend(dash);
        }
        if self.series.len() > 1 {
            legend(&mut chart);
        }
    }
}

fn legend<'a, 'b: 'a>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
) {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(WHITE)
        .label_font(("sans-serif", 13))
        .draw()
        .expect("a legend");
}

fn picture(name: &str, size: (u32, u32), draw: impl FnOnce(&Area)) {
    let folder = fetch::root().join("docs/plots");
    std::fs::create_dir_all(&folder).expect("docs is writable");
    let file = folder.join(format!("{name}.svg"));
    let root = SVGBackend::new(&file, size).into_drawing_area();
    root.fill(&WHITE).expect("writable");
    draw(&root);
    root.present().expect("writable");
    drop(root);
    println!("docs/plots/{name}.svg");
}

/// Envoy's CPU time with the filter, as a multiple.
pub fn floods(rows: &[Row], limit: impl Fn(&Row) -> Option<f64>) {
    let bars = |singly: bool, title: &str| {
        let floods: Vec<_> = floods::all().into_iter().filter(|f| f.singly == singly).collect();
        let row = |size: usize, from_server: bool, setup: &str| {
            let flood = floods.iter().find(|f| f.size == size && f.from_server == from_server)?;
            rows.iter().find(|row| row.what == flood.name() && row.setup == setup)
        };
        let mut sizes: Vec<usize> = floods.iter().map(|flood| flood.size).collect();
        sizes.dedup();
        let bars = |from_server: bool, setup: &str| {
            let ratio = |size: &usize| row(*size, from_server, setup).map(|row| row.ratio);
            sizes.iter().map(ratio).collect::<Vec<_>>()
        };
        let limits = sizes.iter().enumerate().filter_map(|(i, size)| {
            Some((i as f64 + 0.06, i as f64 + 0.94, limit(row(*size, true, "filter")?)?))
        });
        Bars {
            title: title.to_owned(),
            unit: "CPU time, without the filter = 1",
            groups: sizes.iter().map(|size| size_name(*size)).collect(),
            limits: limits.collect(),
            series: vec![
                ("server to client".to_owned(), 2, bars(true, "filter")),
                ("… the floor".to_owned(), 0, bars(true, "floor")),
                ("client to server".to_owned(), 1, bars(false, "filter")),
                ("… the floor".to_owned(), 0, bars(false, "floor")),
            ],
            logarithmic: false,
            decimals: 2,
        }
    };
    picture("floods", (1200, 420), |area| {
        let (left, right) = area.split_horizontally(740);
        bars(false, "Floods, a megabyte a write").draw(&left);
        bars(true, "Floods, a message a write").draw(&right);
    });
}

/// Microseconds of Envoy's CPU time for a plain request.
pub fn requests(rows: &[Row]) {
    let name = |row: &Row| match &row.setup[..] {
        "none" => "no filter".to_owned(),
        "network" => format!("network filter: × {:.2}", row.ratio.median),
        setup => format!("{setup}: × {:.2}", row.ratio.median),
    };
    let bars = Bars {
        title: "Plain HTTP/1.1 requests".to_owned(),
        unit: "µs of CPU time per request",
        groups: rows.iter().map(name).collect(),
        series: vec![(String::new(), 2, rows.iter().map(|row| Some(row.cost)).collect())],
        limits: Vec::new(),
        logarithmic: false,
        decimals: 1,
    };
    picture("requests", (1000, 380), |area| bars.draw(area));
}

/// Milliseconds from the first Close frame to FIN.
pub fn closes(closes: &[Closes]) {
    let mut proxies: Vec<&str> = Vec::new();
    for close in closes {
        if !proxies.contains(&&close.proxy[..]) {
            proxies.push(&close.proxy);
        }
    }
    let bars = |by_server: bool| {
        let of = |proxy: &str, hops: usize| {
            let found = closes
                .iter()
                .find(|c| c.by_server == by_server && c.proxy == proxy && c.hops == hops)?;
            Some(Spread { median: found.p50, low: found.p50, high: found.p99 })
        };
        Bars {
            title: format!("The {} closes", if by_server { "server" } else { "client" }),
            unit: "ms to FIN: p50, whisker to p99",
            groups: (1..=HOPS)
                .map(|n| format!("{n} hop{}", if n > 1 { "s" } else { "" }))
                .collect(),
            series: proxies
                .iter()
                .enumerate()
                .map(|(i, proxy)| {
                    ((*proxy).to_owned(), i, (1..=HOPS).map(|hops| of(proxy, hops)).collect())
                })
                .collect(),
            limits: Vec::new(),
            logarithmic: true,
            decimals: 1,
        }
    };
    picture("closes", (1200, 440), |area| {
        let (left, right) = area.split_horizontally(600);
        bars(true).draw(&left);
        bars(false).draw(&right);
    });
}

/// Envoy's memory as WebSockets come and go.
pub fn memory(uses: &[Use]) {
    type Of = fn(&Memory) -> f64;
    let panels: [(&str, Of); 2] =
        [("Allocated by Envoy", |m| m.allocated), ("Resident", |m| m.resident)];
    picture("memory", (1100, 400), |area| {
        for (area, (title, of)) in area.split_evenly((1, 2)).iter().zip(panels) {
            panel(area, title, uses, of);
        }
    });
}

fn panel(area: &Area, title: &str, uses: &[Use], of: impl Fn(&Memory) -> f64) {
    const MIB: f64 = 1048576.0;
    // Up and down with each batch.
    let line = |used: &Use| -> Vec<(f64, f64)> {
        let mut line = vec![(0.0, of(&used.before) / MIB)];
        for (i, (open, closed)) in used.open.iter().zip(&used.closed).enumerate() {
            line.push(((i as f64 + 0.5) * used.batch as f64, of(open) / MIB));
            line.push(((i as f64 + 1.0) * used.batch as f64, of(closed) / MIB));
        }
        line
    };
    let lines: Vec<(&str, Vec<(f64, f64)>)> = uses
        .iter()
        .filter(|used| used.setup != "floor")
        .map(|used| (&used.setup[..], line(used)))
        .collect();
    let points = || lines.iter().flat_map(|(_, line)| line);
    let right = points().fold(1.0_f64, |a, (x, _)| a.max(*x));
    let top = points().fold(1.0_f64, |a, (_, y)| a.max(*y)) * 1.3;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 17))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(62)
        .build_cartesian_2d(0.0..right, 0.0..top)
        .expect("a chart");
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(6)
        .y_labels(6)
        .x_desc("WebSockets opened and closed so far")
        .y_desc("MiB")
        .axis_desc_style(("sans-serif", 13))
        .label_style(("sans-serif", 12))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()
        .expect("a chart");
    for (i, (name, line)) in lines.into_iter().enumerate() {
        let color = COLORS[[0, 2][i % 2]].stroke_width(2);
        chart
            .draw_series(LineSeries::new(line, color))
            .expect("a chart")
            .label(if name == "none" { "without" } else { "with the filter" })
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], color));
    }
    legend(&mut chart);
}
