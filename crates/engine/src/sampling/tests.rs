use proptest::prelude::*;
use testkit::gguf::tiny_model;

use super::*;
use crate::gguf::Gguf;

/// A token and its probability, best first: what the chain leaves, computed the plain way in double precision.
type Distribution = Vec<(usize, f64)>;

fn sampler(params: &SamplingParams, prompt: &[TokenId]) -> Sampler {
    Sampler::new(params, &SamplingDefaults::default(), 7, prompt).unwrap()
}

/// Everything can be drawn, in proportion to its probability.
fn plain() -> SamplingParams {
    SamplingParams { temperature: Some(1.0), top_k: Some(0), top_p: Some(1.0), ..SamplingParams::default() }
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|logit| (logit - highest).exp()).sum();
    logits.iter().map(|logit| (logit - highest).exp() / total).collect()
}

/// The chain as its documentation tells it. `None` where rounding decides whether a token is in or out.
fn reference(params: &SamplingParams, prompt: &[usize], answer: &[usize], logits: &[f32]) -> Option<Distribution> {
    let mut logits: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
    for (token, bias) in &params.logit_bias {
        logits[*token as usize] += f64::from(*bias);
    }
    let text: Vec<usize> = prompt.iter().chain(answer).copied().collect();
    for (token, logit) in logits.iter_mut().enumerate() {
        let repetition = f64::from(params.repetition_penalty.unwrap_or(1.0));
        if text[text.len().saturating_sub(64)..].contains(&token) {
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        }
        let count = answer.iter().filter(|drawn| **drawn == token).count();
        if count > 0 {
            *logit -= f64::from(params.presence_penalty.unwrap_or(0.0));
            *logit -= f64::from(params.frequency_penalty.unwrap_or(0.0)) * count as f64;
        }
    }
    let mut ranking: Vec<(usize, f64)> = logits.iter().copied().enumerate().collect();
    ranking.sort_by(|a, b| b.1.total_cmp(&a.1));
    if ranking.windows(2).any(|pair| (pair[0].1 - pair[1].1).abs() < 1e-5) {
        return None;
    }
    if let Some(top_k) = params.top_k.filter(|top_k| *top_k > 0) {
        ranking.truncate(top_k);
    }
    let probabilities = softmax(&ranking.iter().map(|(_, logit)| *logit).collect::<Vec<_>>());
    let (top_p, min_p) = (f64::from(params.top_p.unwrap()), f64::from(params.min_p.unwrap_or(0.0)));
    let mut keep = 0;
    let mut reached = 0.0;
    for probability in &probabilities {
        let is_close = |a: f64, b: f64| (a - b).abs() < 1e-5;
        if (top_p < 1.0 && is_close(reached, top_p)) || (min_p > 0.0 && is_close(probability / probabilities[0], min_p))
        {
            return None;
        }
        if keep > 0 && ((top_p < 1.0 && reached >= top_p) || *probability < min_p * probabilities[0]) {
            break;
        }
        keep += 1;
        reached += probability;
    }
    ranking.truncate(keep);
    let temperature = f64::from(params.temperature.unwrap());
    let bent = softmax(&ranking.iter().map(|(_, logit)| logit / temperature).collect::<Vec<_>>());
    Some(ranking.iter().zip(bent).map(|((token, _), probability)| (*token, probability)).collect())
}

/// The distribution that a sampler draws from.
fn distribution(sampler: &Sampler, logits: &[f32]) -> Distribution {
    let mut logits = logits.to_vec();
    sampler.add_bias(&mut logits);
    sampler.penalize(&mut logits);
    let survivors = candidates::survivors(&logits, &sampler.settings.cuts);
    let highest = candidates::highest(&logits);
    let weights = survivors.iter().map(|c| candidates::weight(c.logit, highest, sampler.settings.temperature));
    let total: f64 = weights.clone().sum();
    let mut found: Distribution =
        survivors.iter().zip(weights).map(|(c, weight)| (c.token as usize, weight / total)).collect();
    found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    found
}

/// Whether `counts` may come from `expected`: Pearson's statistic lies below the value that one in 100,000 exceeds
/// (Wilson and Hilferty's approximation).
fn fits(counts: &HashMap<usize, usize>, expected: &Distribution) -> bool {
    let draws: usize = counts.values().sum();
    assert!(counts.keys().all(|token| expected.iter().any(|(known, _)| known == token)), "{counts:?} {expected:?}");
    let statistic: f64 = expected
        .iter()
        .map(|(token, probability)| {
            let wanted = probability * draws as f64;
            (counts.get(token).copied().unwrap_or(0) as f64 - wanted).powi(2) / wanted
        })
        .sum();
    let freedom = (expected.len() - 1) as f64;
    freedom == 0.0
        || statistic < freedom * (1.0 - 2.0 / (9.0 * freedom) + 4.265 * (2.0 / (9.0 * freedom)).sqrt()).powi(3)
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    let cuts = (0.05_f32..3.0, 0_usize..14, 0.0_f32..1.05, 0.0_f32..0.4);
    let penalties = (0.5_f32..2.0, -1.0_f32..2.0, -1.0_f32..2.0);
    let bias = proptest::collection::vec((0_u32..12, -4.0_f32..4.0), 0..3);
    (cuts, penalties, bias).prop_map(|((temperature, top_k, top_p, min_p), (repetition, presence, frequency), bias)| {
        SamplingParams {
            temperature: Some(temperature),
            top_k: Some(top_k),
            top_p: Some(top_p.min(1.0)),
            min_p: Some(min_p),
            repetition_penalty: Some(repetition),
            presence_penalty: Some(presence),
            frequency_penalty: Some(frequency),
            logit_bias: bias,
            ..SamplingParams::default()
        }
    })
}

/// Any float there is, the odd ones often.
fn any_logit() -> impl Strategy<Value = f32> {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE];
    prop_oneof![-20.0_f32..20.0, any::<f32>(), proptest::sample::select(odd.to_vec())]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn the_distribution_is_the_documented_one(
        params in any_params(),
        logits in proptest::collection::vec(-6.0_f32..6.0, 12),
        prompt in proptest::collection::vec(0_usize..12, 0..5),
        answer in proptest::collection::vec(0_usize..12, 0..70),
    ) {
        let prompt_tokens: Vec<TokenId> = prompt.iter().map(|token| *token as TokenId).collect();
        let mut sampler = sampler(&params, &prompt_tokens);
        for token in &answer {
            sampler.accept(*token as TokenId);
        }
        if let Some(expected) = reference(&params, &prompt, &answer, &logits) {
            let found = distribution(&sampler, &logits);
            let tokens = |distribution: &Distribution| distribution.iter().map(|(token, _)| *token).collect::<Vec<_>>();
            prop_assert_eq!(tokens(&found), tokens(&expected));
            for ((_, found), (_, expected)) in found.iter().zip(&expected) {
                // At a temperature of 0.05, a rounding of the logits counts twenty times.
                prop_assert!((found - expected).abs() < 1e-4, "{} {}", found, expected);
            }
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_never_drawn(
        params in any_params(),
        logits in proptest::collection::vec(any_logit(), 1..300),
        seed in any::<u64>(),
        greedy in any::<bool>(),
    ) {
        let temperature = if greedy { Some(0.0) } else { params.temperature };
        let params = SamplingParams { temperature, seed: Some(seed), top_logprobs: Some(3), logit_bias: Vec::new(), ..params };
        let drawn = sampler(&params, &[]).sample(&mut logits.clone(), None);
        let is_drawable = |logit: &f32| *logit > f32::NEG_INFINITY;
        match drawn {
            Ok(draw) => {
                prop_assert!(is_drawable(&logits[draw.token as usize]));
                let logprobs = draw.logprobs.unwrap();
                prop_assert!(!logprobs.drawn.is_nan() && logprobs.top.iter().all(|(_, logprob)| !logprob.is_nan()));
            }
            Err(error) => prop_assert!(!logits.iter().any(is_drawable), "{}", error),
        }
    }

    #[test]
    fn greedy_top_k_1_and_top_p_0_all_take_the_highest(logits in proptest::collection::vec(any_logit(), 1..300)) {
        let highest = logits.iter().copied().filter(|logit| !logit.is_nan()).fold(f32::NEG_INFINITY, f32::max);
        prop_assume!(highest > f32::NEG_INFINITY);
        let expected = logits.iter().position(|logit| *logit == highest).unwrap() as TokenId;
        let greedy = SamplingParams { temperature: Some(0.0), ..plain() };
        let top_k = SamplingParams { top_k: Some(1), ..plain() };
        let cold = SamplingParams { temperature: Some(f32::MIN_POSITIVE), top_k: Some(1), top_p: Some(0.0), ..plain() };
        for params in [greedy, top_k, cold] {
            prop_assert_eq!(sampler(&params, &[]).sample(&mut logits.clone(), None).unwrap().token, expected);
        }
        // +0 and −0 are equal as numbers, but a ranking puts one first.
        if highest != 0.0 {
            let top_p = SamplingParams { top_p: Some(0.0), ..plain() };
            prop_assert_eq!(sampler(&top_p, &[]).sample(&mut logits.clone(), None).unwrap().token, expected);
        }
    }

    #[test]
    fn selection_finds_what_sorting_would(
        // Few values, so that there are many ties.
        logits in proptest::collection::vec(prop_oneof![(-8_i8..8).prop_map(f32::from), any_logit()], 1..500),
        count in 1_usize..20,
    ) {
        let mut ranking: Vec<usize> = (0..logits.len()).filter(|i| logits[*i] > f32::NEG_INFINITY).collect();
        ranking.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        ranking.truncate(count);
        let found = candidates::most_probable(&logits, count);
        // The bar doesn't tell −0 from +0, which only total order does.
        let same = found.iter().zip(&ranking).all(|(found, expected)| found.logit == logits[*expected]);
        prop_assert!(same && found.len() == ranking.len());
        if !logits.contains(&0.0) {
            prop_assert!(found.iter().zip(&ranking).all(|(found, expected)| found.token as usize == *expected));
        }
    }
}

#[test]
fn draws_follow_the_distribution() {
    let logits: Vec<f32> = (0..40).map(|i| ((i * 37 % 40) as f32).mul_add(0.15, -1.0)).collect();
    let cases = [
        plain(),
        SamplingParams { temperature: Some(0.5), ..plain() },
        SamplingParams { temperature: Some(2.5), top_k: Some(7), ..plain() },
        SamplingParams { top_p: Some(0.6), ..plain() },
        SamplingParams { min_p: Some(0.3), temperature: Some(1.5), ..plain() },
        SamplingParams { top_k: Some(20), top_p: Some(0.9), min_p: Some(0.05), temperature: Some(0.8), ..plain() },
        SamplingParams { logit_bias: vec![(3, 4.0), (39, f32::NEG_INFINITY)], ..plain() },
    ];
    for (seed, params) in cases.into_iter().enumerate() {
        let expected: Distribution =
            reference(&params, &[], &[], &logits).unwrap().into_iter().filter(|(_, p)| *p > 0.0).collect();
        // Along one answer, and over the first tokens of many.
        let mut along = sampler(&SamplingParams { seed: Some(seed as u64), ..params.clone() }, &[]);
        let (mut of_one, mut of_many) = (HashMap::new(), HashMap::new());
        for other in 0..40_000_u64 {
            let draw = along.sample(&mut logits.clone(), None).unwrap();
            along.accept(draw.token);
            *of_one.entry(draw.token as usize).or_default() += 1;
            let first = sampler(&SamplingParams { seed: Some(other), ..params.clone() }, &[]);
            *of_many.entry(first.sample(&mut logits.clone(), None).unwrap().token as usize).or_default() += 1;
        }
        assert!(fits(&of_one, &expected), "{params:?}: {of_one:?}");
        assert!(fits(&of_many, &expected), "{params:?}: {of_many:?}");
    }
}

#[test]
fn the_chi_square_test_can_fail() {
    let expected = vec![(0, 0.5), (1, 0.3), (2, 0.2)];
    assert!(fits(&HashMap::from([(0, 10_050), (1, 5_960), (2, 3_990)]), &expected));
    assert!(!fits(&HashMap::from([(0, 10_400), (1, 5_800), (2, 3_800)]), &expected));
}

fn text(sampler: &mut Sampler, tokens: usize) -> Vec<TokenId> {
    let draws = (0..tokens).map(|_| {
        let token = sampler.sample(&mut [0.3, -0.2, 0.5, 0.1, 0.4], None).unwrap().token;
        sampler.accept(token);
        token
    });
    draws.collect()
}

#[test]
fn the_same_seed_draws_the_same_tokens() {
    let with = |seed| text(&mut sampler(&SamplingParams { seed: Some(seed), ..plain() }, &[]), 50);
    assert_eq!(with(1), with(1));
    assert_ne!(with(1), with(2));
    // No seed: the fresh one.
    assert_eq!(text(&mut sampler(&plain(), &[]), 50), with(7));
}

#[test]
fn another_sampler_goes_on_from_the_tokens_alone() {
    let params =
        SamplingParams { repetition_penalty: Some(1.3), frequency_penalty: Some(0.2), seed: Some(3), ..plain() };
    let whole = text(&mut sampler(&params, &[1, 2]), 60);
    let mut second = sampler(&params, &[1, 2]);
    for token in &whole[..25] {
        second.accept(*token);
    }
    let mut clone = second.clone();
    assert_eq!(text(&mut second, 35), whole[25..]);
    assert_eq!(text(&mut clone, 35), whole[25..]);
    assert_eq!(second.state, clone.state);
}

#[test]
fn only_the_repetition_penalty_counts_the_prompt() {
    let logits = [1.0, 2.0, -1.0];
    let after = |params: SamplingParams, prompt: &[TokenId]| {
        let mut logits = logits;
        sampler(&params, prompt).penalize(&mut logits);
        logits
    };
    let repetition = SamplingParams { repetition_penalty: Some(2.0), ..plain() };
    assert_eq!(after(repetition.clone(), &[1, 1, 2]), [1.0, 1.0, -2.0]);
    let presence = SamplingParams { presence_penalty: Some(1.0), frequency_penalty: Some(1.0), ..plain() };
    assert_eq!(after(presence, &[1, 1, 2]), logits);
    // 64 tokens later, the first of the prompt is forgotten.
    let long: Vec<TokenId> = std::iter::once(1).chain([0; 64]).collect();
    assert_eq!(after(repetition, &long), [0.5, 2.0, -1.0]);
}

#[test]
fn logprobs_are_the_models_own() {
    let logits = [2.0, 0.5, f32::NEG_INFINITY, 1.0];
    let expected = softmax(&[2.0, 0.5, f64::NEG_INFINITY, 1.0]);
    let params = SamplingParams {
        top_logprobs: Some(20),
        top_k: Some(1),
        logit_bias: vec![(1, 50.0)],
        temperature: Some(0.3),
        ..SamplingParams::default()
    };
    let draw = sampler(&params, &[0, 1]).sample(&mut logits.clone(), None).unwrap();
    assert_eq!(draw.token, 1);
    let logprobs = draw.logprobs.unwrap();
    assert!((f64::from(logprobs.drawn) - expected[1].ln()).abs() < 1e-6);
    let tokens: Vec<_> = logprobs.top.iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens, [0, 3, 1]);
    assert!(
        logprobs
            .top
            .iter()
            .all(|(token, logprob)| { (f64::from(*logprob) - expected[*token as usize].ln()).abs() < 1e-6 })
    );
    let none = SamplingParams { top_logprobs: Some(0), ..plain() };
    let logprobs = sampler(&none, &[]).sample(&mut logits.clone(), None).unwrap().logprobs.unwrap();
    assert!(logprobs.top.is_empty());
}

#[test]
fn a_parameter_without_meaning_is_refused_and_one_out_of_range_clamped() {
    let refused = [
        SamplingParams { temperature: Some(f32::NAN), ..plain() },
        SamplingParams { top_p: Some(f32::INFINITY), ..plain() },
        SamplingParams { min_p: Some(f32::NAN), ..plain() },
        SamplingParams { repetition_penalty: Some(0.0), ..plain() },
        SamplingParams { presence_penalty: Some(f32::NAN), ..plain() },
        SamplingParams { frequency_penalty: Some(f32::NEG_INFINITY), ..plain() },
        SamplingParams { logit_bias: vec![(0, f32::NAN)], ..plain() },
        SamplingParams { top_logprobs: Some(21), ..plain() },
    ];
    for params in refused {
        let error = Sampler::new(&params, &SamplingDefaults::default(), 0, &[]).unwrap_err();
        assert!(matches!(&error, GenerateError::InvalidRequest(what) if what.starts_with('`')), "{params:?}: {error}");
    }
    let clamped = SamplingParams {
        temperature: Some(-1.0),
        top_k: Some(usize::MAX),
        top_p: Some(7.0),
        min_p: Some(-3.0),
        logit_bias: vec![(u32::MAX, 1.0)],
        ..SamplingParams::default()
    };
    assert_eq!(sampler(&clamped, &[u32::MAX]).sample(&mut [1.0, 2.0], None).unwrap().token, 1);
}

#[test]
fn no_number_at_all_is_an_error() {
    for logits in [vec![], vec![f32::NAN; 3], vec![f32::NEG_INFINITY; 100]] {
        for temperature in [0.0, 1.0] {
            let params = SamplingParams { temperature: Some(temperature), ..plain() };
            let error = sampler(&params, &[]).sample(&mut logits.clone(), None).unwrap_err();
            assert!(matches!(error, GenerateError::Compute(_)), "{error}");
        }
    }
}

#[test]
fn a_file_recommends_and_cannot_harm() {
    let folder = tempfile::tempdir().unwrap();
    let read = |values: [(&str, f32); 4]| {
        let file = values
            .into_iter()
            .fold(tiny_model(1), |file, (key, value)| file.f32(&format!("general.sampling.{key}"), value));
        SamplingDefaults::read(Gguf::open(&file.write(folder.path(), "m.gguf").unwrap()).unwrap().metadata())
    };
    let good = read([("temp", 0.6), ("top_k", 20.0), ("penalty_repeat", 1.1), ("penalty_last_n", -1.0)]);
    let settings = Settings::new(&SamplingParams::default(), &good).unwrap();
    assert_eq!((settings.temperature, settings.cuts.top_k, settings.repetition_penalty), (0.6, 20, 1.1));
    assert_eq!(settings.penalty_window, usize::MAX);
    let asked = SamplingParams { temperature: Some(1.5), top_k: Some(3), ..SamplingParams::default() };
    let settings = Settings::new(&asked, &good).unwrap();
    assert_eq!((settings.temperature, settings.cuts.top_k), (1.5, 3));
    let bad =
        read([("temp", f32::NAN), ("top_p", f32::INFINITY), ("penalty_repeat", -2.0), ("penalty_last_n", f32::NAN)]);
    let mut sampler = Sampler::new(&SamplingParams::default(), &bad, 0, &[1, 2]).unwrap();
    sampler.accept(1);
    assert_eq!(sampler.sample(&mut [0.0, 9.0, 0.0], None).unwrap().token, 1);
}
