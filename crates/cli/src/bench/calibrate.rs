//! `tidegate bench --calibrate`: what this machine does, for forecasts of models that never ran on it.

use app::App;

use crate::style;

pub(super) async fn run(app: &App) -> anyhow::Result<()> {
    let found = app.calibrate(None).await?;
    let style = style::stdout();
    println!("machine    {}", found.measured_on.machine);
    println!("system     {}, engine {}", found.measured_on.os, found.measured_on.engine);
    println!("model      {}", found.model);
    println!();
    let row = |name: &str, value: String| println!("{name:<26}{}", style.strong(&value));
    row("memory bandwidth", format!("{:.1} GB/s", found.bandwidth_bytes_per_sec / 1e9));
    row("prefill", format!("{:.0} tokens/s", found.prefill_tokens_per_sec));
    row("decode", format!("{:.1} tokens/s", found.decode_tokens_per_sec));
    row("η, reached of bandwidth", format!("{:.2}", found.eta));
    row("operations in prefill", format!("{:.0} G/s", found.prefill_flops_per_sec / 1e9));
    Ok(())
}
