//! Numbers parsed from their own digits: exact, or refused.

use std::borrow::Cow;

/// Every integer up to this one is a `double`.
const EXACT: i128 = 1 << 53;
/// More digits than any field holds, which bounds the arithmetic below.
const MAX_DIGITS: usize = 36;

pub(super) const NOT_A_NUMBER: &str = "must be a number";
const NOT_WHOLE: &str = "must be a whole number";
const OUT_OF_RANGE: &str = "is out of range";
const NOT_EXACT: &str = "has more digits than a double can hold";
const NOT_EXACT_INTEGER: &str = "is beyond 2^53, where a double cannot hold every integer: write it as a string or with an exponent";

type Problem = Cow<'static, str>;

/// A number of JSON's grammar, split into its parts.
#[derive(Debug, PartialEq, Eq)]
struct Decimal<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    exponent: Option<i64>,
}

impl<'a> Decimal<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, Some(read_exponent(exponent)?)),
            None => (rest, None),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) if are_digits(fraction) => (whole, fraction),
            Some(_) => return None,
            None => (mantissa, ""),
        };
        let leading = whole.len() > 1 && whole.starts_with('0');
        (are_digits(whole) && !leading).then_some(Self {
            negative,
            whole,
            fraction,
            exponent,
        })
    }

    fn is_integer_literal(&self) -> bool {
        self.fraction.is_empty() && self.exponent.is_none()
    }

    /// Returns the significant digits, and the power of ten by which they are multiplied.
    fn significant(&self) -> (String, i64) {
        let digits = format!("{}{}", self.whole, self.fraction);
        let scale = i64::try_from(self.fraction.len()).unwrap_or(i64::MAX);
        let digits = digits.trim_start_matches('0');
        let short = digits.trim_end_matches('0');
        if short.is_empty() {
            return (String::new(), 0);
        }
        let dropped = i64::try_from(digits.len() - short.len()).unwrap_or(i64::MAX);
        let power = self.exponent.unwrap_or(0);
        (
            short.to_owned(),
            power.saturating_sub(scale).saturating_add(dropped),
        )
    }

    fn integer(&self) -> Result<i128, Problem> {
        let (digits, power) = self.significant();
        if digits.is_empty() {
            return Ok(0);
        }
        let power =
            u32::try_from(power).map_err(|_| if power < 0 { NOT_WHOLE } else { OUT_OF_RANGE })?;
        if digits.len().saturating_add(power as usize) > MAX_DIGITS {
            return Err(OUT_OF_RANGE.into());
        }
        let value = digits.parse::<i128>().map_err(|_| OUT_OF_RANGE)? * 10i128.pow(power);
        Ok(if self.negative { -value } else { value })
    }

    /// Whether `value`, the nearest double, is what was written. A double cannot be expected to hold every
    /// fraction, but a whole number must be the one that the double is usually written as, in short or in
    /// full.
    fn is_kept_by(&self, value: f64) -> bool {
        if value.abs() < EXACT as f64 {
            return true;
        }
        let written = self.significant();
        if written.1 < 0 {
            return true;
        }
        [format!("{value:e}"), format!("{value:.0}")]
            .iter()
            .filter_map(|text| Decimal::parse(text))
            .any(|usual| usual.significant() == written)
    }
}

fn are_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Parses an exponent; one beyond any number's saturates.
fn read_exponent(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let size = are_digits(digits).then(|| digits.parse().unwrap_or(i64::MAX / 4))?;
    Some(if negative { -size } else { size })
}

/// Parses an integer field, which accepts 7, 7.0 and 7e0, as numbers and as strings.
pub(super) fn integer(text: &str) -> Result<i128, Problem> {
    Decimal::parse(text).ok_or(NOT_WHOLE)?.integer()
}

pub(super) fn double(text: &str) -> Result<f64, Problem> {
    let decimal = Decimal::parse(text).ok_or(NOT_A_NUMBER)?;
    let value: f64 = text.parse().map_err(|_| NOT_A_NUMBER)?;
    let vanished = value == 0.0 && !decimal.significant().0.is_empty();
    if !value.is_finite() || vanished {
        return Err(OUT_OF_RANGE.into());
    }
    if decimal.is_kept_by(value) {
        Ok(value)
    } else {
        Err(NOT_EXACT.into())
    }
}

pub(super) fn float(text: &str) -> Result<f32, Problem> {
    let wide = double(text)?;
    let value: f32 = text.parse().map_err(|_| NOT_A_NUMBER)?;
    if !value.is_finite() || value == 0.0 && wide != 0.0 {
        return Err(OUT_OF_RANGE.into());
    }
    Ok(value)
}

/// Parses a number of a `google.protobuf.Struct`, which has doubles only: an integer is refused when its
/// neighbour would become the same double.
pub(super) fn in_struct(text: &str) -> Result<f64, Problem> {
    let decimal = Decimal::parse(text).ok_or(NOT_A_NUMBER)?;
    if decimal.is_integer_literal() && !decimal.integer().is_ok_and(|n| n.abs() <= EXACT) {
        return Err(NOT_EXACT_INTEGER.into());
    }
    double(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_parsed_in_every_form_of_the_mapping() {
        for (text, value) in [
            ("0", 0),
            ("-0", 0),
            ("-0.0e9", 0),
            ("7", 7),
            ("7.0", 7),
            ("7e0", 7),
            ("70e-1", 7),
            ("0.7E+1", 7),
            ("-12.50e2", -1250),
            ("18446744073709551615", i128::from(u64::MAX)),
            ("18446744073709551615.000", i128::from(u64::MAX)),
            ("-9223372036854775808", i128::from(i64::MIN)),
            ("9007199254740993", 9_007_199_254_740_993),
            ("0e999999999999999999999", 0),
        ] {
            assert_eq!(integer(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn text_that_is_not_an_integer_is_refused() {
        for text in [
            "",
            "-",
            "+7",
            " 7",
            "7 ",
            "07",
            "00",
            "7.",
            ".7",
            "7e",
            "7e+",
            "0x7",
            "1_000",
            "7.5",
            "7e-1",
            "1e-999999999999999999999",
            "1e400",
            "NaN",
            "Infinity",
            "inf",
            "٧",
            "1e999999999999999999999",
        ] {
            assert!(integer(text).is_err(), "{text}");
        }
    }

    #[test]
    fn doubles_are_the_nearest_and_always_finite() {
        for text in [
            "0.9803246417122269",
            "0.1",
            "1e308",
            "5e-324",
            "1e23",
            "1e300",
            "-7",
            "0.30000000000000004",
            "0.10000000000000001",
            "9007199254740992",
            "9007199254740994.0",
            "18446744073709551616",
            "100000000000000000000",
            "123456789012345670000",
            "1152921504606846976",
            "1e2",
            "9007199254740992.5",
        ] {
            let value = double(text);
            assert_eq!(value, Ok(text.parse().unwrap()), "{text}");
        }
        assert!(
            double("-0.0").unwrap().is_sign_negative() && double("-0").unwrap().is_sign_negative()
        );
        for text in [
            "1e309",
            "-1e400",
            "1e-400",
            "9007199254740993",
            "9007199254740993.0",
            "18446744073709551617",
            "inf",
            "nan",
            "+1",
            "1.",
            ".5",
            "",
            "01",
        ] {
            assert!(double(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_struct_accepts_the_integers_that_a_double_holds() {
        for text in [
            "9007199254740992",
            "-9007199254740992",
            "1e300",
            "0.1",
            "9007199254740994.0",
        ] {
            assert!(in_struct(text).is_ok(), "{text}");
        }
        for text in [
            "9007199254740993",
            "9007199254740994",
            "-9007199254740993",
            "18446744073709551616",
            "100000000000000000000",
            "9007199254740993.0",
            "1e400",
        ] {
            assert!(in_struct(text).is_err(), "{text}");
        }
        assert!(in_struct(&"9".repeat(10_000)).is_err());
    }

    #[test]
    fn floats_are_rounded_once() {
        assert_eq!(float("0.1"), Ok(0.1f32));
        assert_eq!(float("3.4028234663852886e38"), Ok(f32::MAX));
        assert!(float("1e39").is_err() && float("1e-60").is_err());
    }
}
