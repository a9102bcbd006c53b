//! Transactions of a web shop that never was: the same seed and times give the same events.
//!
//! A transaction passes through one to three statuses, each an event of its own. Some events are bad
//! (the door or a statement must refuse them), some are repeated, some come late.

use std::collections::VecDeque;

use highwater_event::{SeededRandomness, time};
use serde_json::{Value, json};

/// Shares of all events, between 0 and 1.
#[derive(Debug, Clone, Copy)]
pub struct Shares {
    pub bad: f64,
    pub duplicate: f64,
    pub late: f64,
}

/// A generator.
pub struct Transactions {
    random: SeededRandomness,
    shares: Shares,
    /// Transactions that have not reached their last status.
    open: VecDeque<Value>,
    /// Newest good events, for repeats.
    recent: VecDeque<String>,
}

const NAMES: [&str; 8] = ["Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Radia", "Leslie"];
const SURNAMES: [&str; 8] = ["Moreau", "Schmidt", "Tanaka", "Silva", "Novak", "Larsen", "Rossi", "Okafor"];
const CURRENCIES: [&str; 6] = ["USD", "EUR", "GBP", "CAD", "JPY", "AUD"];
const TYPES: [&str; 4] = ["purchase", "refund", "payment", "withdrawal"];
const METHODS: [&str; 6] =
    ["credit_card", "paypal", "bank_transfer", "apple_pay", "google_pay", "cryptocurrency"];
const CATEGORIES: [&str; 5] = ["electronics", "clothing", "books", "home_goods", "food"];
const PLACES: [(&str, &str); 12] = [
    ("Paris", "France"),
    ("London", "UK"),
    ("Glasgow", "UK"),
    ("Berlin", "Germany"),
    ("Munich", "Germany"),
    ("New York", "USA"),
    ("San Francisco", "USA"),
    ("Tokyo", "Japan"),
    ("Shenzhen", "China"),
    ("Shanghai", "China"),
    ("Toronto", "Canada"),
    ("Sydney", "Australia"),
];
const SYSTEMS: [&str; 5] = ["Windows", "macOS", "Linux", "Android", "iOS"];
const BROWSERS: [&str; 4] = ["Chrome", "Firefox", "Safari", "Edge"];

impl Transactions {
    /// A generator with a seed.
    pub fn new(seed: u64, shares: Shares) -> Self {
        Self { random: SeededRandomness::new(seed), shares, open: VecDeque::new(), recent: VecDeque::new() }
    }

    fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.random.below(from.len() as u64) as usize]
    }

    fn cents(&self, from: u64, to: u64) -> Value {
        let cents = from + self.random.below(to - from + 1);
        // A number of two digits is exact as a double's shortest text.
        json!(cents as f64 / 100.0)
    }

    /// The next event, which happens at `now` (microseconds UTC), as one line of JSON.
    pub fn next(&mut self, now: i64) -> String {
        if !self.recent.is_empty() && self.random.chance(self.shares.duplicate) {
            return self.recent[self.random.below(self.recent.len() as u64) as usize].clone();
        }
        if self.random.chance(self.shares.bad) {
            return self.bad(now);
        }
        let at = if self.random.chance(self.shares.late) {
            now - 7_200_000_000 - self.random.below(79_200_000_000) as i64
        } else {
            now
        };
        let event = self.good(at).to_string();
        self.recent.push_back(event.clone());
        if self.recent.len() > 1000 {
            self.recent.pop_front();
        }
        event
    }

    fn good(&mut self, at: i64) -> Value {
        if self.open.len() > 50 || (!self.open.is_empty() && self.random.chance(0.3)) {
            let at_random = self.random.below(self.open.len() as u64) as usize;
            if let Some(mut transaction) = self.open.remove(at_random) {
                let next = match transaction["status"].as_str() {
                    Some("pending") => *self.pick(&["processing", "completed", "cancelled"]),
                    _ => *self.pick(&["completed", "completed", "failed"]),
                };
                transaction["status"] = next.into();
                transaction["timestamp"] = time::show_micros(at).into();
                if next == "processing" {
                    self.open.push_back(transaction.clone());
                }
                return transaction;
            }
        }
        let transaction = self.transaction(at);
        if matches!(transaction["status"].as_str(), Some("pending" | "processing")) {
            self.open.push_back(transaction.clone());
        }
        transaction
    }

    fn transaction(&self, at: i64) -> Value {
        let (city, country) = self.pick(&PLACES);
        let (ship_city, ship_country) = self.pick(&PLACES);
        let number = |from: u64, to: u64| from + self.random.below(to - from + 1);
        let rating = if self.random.chance(0.3) { Value::Null } else { json!(number(1, 5)) };
        let discount = if self.random.chance(0.8) {
            Value::Null
        } else {
            json!(format!("DISCOUNT-{:03}", number(100, 999)))
        };
        json!({
            "transaction_id": format!("TXN-{:08x}", self.random.next() as u32),
            "timestamp": time::show_micros(at),
            "user_id": format!("USER-{:04}", number(1, 2000)),
            "user_name": format!("{} {}", self.pick(&NAMES), self.pick(&SURNAMES)),
            "product_id": format!("PROD-{:03}", number(1, 200)),
            "amount": self.cents(1_000, 100_000),
            "currency": self.pick(&CURRENCIES),
            "transaction_type": self.pick(&TYPES),
            "status": self.pick(&["pending", "processing", "completed", "completed", "completed", "failed", "cancelled"]),
            "location": {"city": city, "country": country},
            "payment_method": self.pick(&METHODS),
            "product_category": self.pick(&CATEGORIES),
            "quantity": number(1, 10),
            "shipping_address": {
                "street": format!("{} Rue de la Paix", number(1, 200)),
                "zip": format!("{:05}", number(10_000, 99_999)),
                "city": ship_city,
                "country": ship_country,
            },
            "device_info": {
                "os": self.pick(&SYSTEMS),
                "browser": self.pick(&BROWSERS),
                "ip_address": format!("198.51.{}.{}", number(0, 255), number(1, 254)),
            },
            "customer_rating": rating,
            "discount_code": discount,
            "tax_amount": self.cents(50, 20_000),
        })
    }

    /// An event that must not be taken as it is.
    fn bad(&mut self, at: i64) -> String {
        let mut event = self.transaction(at);
        match self.random.below(6) {
            0 => event["amount"] = "a lot".into(),
            1 => event["currency"] = "XXX".into(),
            2 => event["timestamp"] = "yesterday".into(),
            3 => event["transaction_id"] = Value::Null,
            4 => event["location"] = "Paris".into(),
            _ => {
                let text = event.to_string();
                return text[..text.len() / 2].to_owned();
            }
        }
        event.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_events() {
        let shares = Shares { bad: 0.1, duplicate: 0.1, late: 0.1 };
        let make = |seed| {
            let mut events = Transactions::new(seed, shares);
            (0..500).map(|at| events.next(at * 1_000_000)).collect::<Vec<_>>()
        };
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
    }
}
