//! The rows of the database: not stored but computed from the seed and the id whenever one is asked for. Pure.
//!
//! The sizes are those of the real database; the contents are invented.

use serde::Serialize;

use super::calendar::{Date, Timestamp};
use super::dice::{self, Dice, Stream};

/// How many rows each table has. Ids run from 1.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub movies: u32,
    pub customers: u32,
    pub sessions: u32,
}

impl Sizes {
    /// As `prepare_db` of the real service makes them.
    pub const FULL: Sizes = Sizes { movies: 29_020, customers: 500_000, sessions: 5_000_000 };
}

/// The database as it was prepared, before any insertion or deletion.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    dice: Dice,
    sizes: Sizes,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Movie {
    pub id: u32,
    pub name: String,
    pub year: u32,
    /// Nanoseconds, as a Go program keeps a duration in a bigint (invented).
    pub duration: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Customer {
    pub id: u32,
    pub name: &'static str,
    pub surname: &'static str,
    pub birthday: Date,
    pub email: String,
}

/// A row of `sessions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Session {
    pub id: u64,
    pub start_time: Timestamp,
    pub customer_id: u32,
    pub movie_id: u32,
}

/// A session joined with its customer and its movie, as the service answers it. The shape is invented.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Joined {
    pub id: u64,
    pub start_time: Timestamp,
    pub customer: Customer,
    pub movie: Movie,
}

/// Years of movies: 1895 (the first one shown) to 2023.
const YEARS: std::ops::Range<u32> = 1895..2024;
/// Birthdays: 1940-01-01 and the 25,000 days after it, in days from 1970.
const BIRTHDAYS: (i64, u64) = (-10_957, 25_000);
/// Starts of sessions: ten years from 2014-01-01, in seconds from 1970.
const STARTS: (i64, u64) = (1_388_534_400, 10 * 365 * 86_400);

impl Data {
    pub fn new(seed: u64, sizes: Sizes) -> Data {
        Data { dice: Dice::new(seed), sizes }
    }

    pub fn seed(&self) -> u64 {
        self.dice.seed()
    }

    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The movie with this id, none if there is no such row.
    pub fn movie(&self, id: u32) -> Option<Movie> {
        if !(1..=self.sizes.movies).contains(&id) {
            return None;
        }
        let minutes = 40 + self.dice.below(Stream::MovieDuration, id.into(), 160);
        let year = self.movie_year(id);
        Some(Movie { id, name: self.movie_name(id), year, duration: minutes * 60_000_000_000 })
    }

    fn movie_year(&self, id: u32) -> u32 {
        let years = u64::from(YEARS.end - YEARS.start);
        YEARS.start + self.dice.below(Stream::MovieYear, id.into(), years) as u32
    }

    /// Short enough a set that some movies of one year share a name, as real ones do: the list's order must cope.
    fn movie_name(&self, id: u32) -> String {
        let random = self.dice.roll(Stream::MovieTitle, id.into());
        let (first, second) = (pick(&ADJECTIVES, random), pick(&NOUNS, random.rotate_left(21)));
        match dice::scale(random.rotate_left(42), 4) {
            0 => format!("{first} {second}"),
            1 => format!("The {first} {second}"),
            2 => format!("{second} of the {first} Night"),
            _ => format!("{first} {second}: The Return"),
        }
    }

    /// The customer with this id, none if there is no such row.
    pub fn customer(&self, id: u32) -> Option<Customer> {
        if !(1..=self.sizes.customers).contains(&id) {
            return None;
        }
        let random = self.dice.roll(Stream::CustomerName, id.into());
        let (name, surname) = (pick(&NAMES, random), pick(&SURNAMES, random.rotate_left(32)));
        let days = self.dice.below(Stream::CustomerBirthday, id.into(), BIRTHDAYS.1) as i64;
        let email = format!("{}.{}.{id}@example.com", name.to_lowercase(), surname.to_lowercase());
        Some(Customer { id, name, surname, birthday: Date(BIRTHDAYS.0 + days), email })
    }

    /// The session with this id as it was prepared, none if there was no such row.
    pub fn session(&self, id: u64) -> Option<Session> {
        if !(1..=u64::from(self.sizes.sessions)).contains(&id) {
            return None;
        }
        let start = STARTS.0 + self.dice.below(Stream::SessionStart, id, STARTS.1) as i64;
        Some(Session {
            id,
            start_time: Timestamp(start * 1_000_000),
            customer_id: 1 + self.dice.below(Stream::SessionCustomer, id, self.sizes.customers.into()) as u32,
            movie_id: self.session_movie(id),
        })
    }

    /// The movie of a prepared session, alone: the session list asks it five million times. `id` must be a prepared
    /// one.
    #[inline]
    pub fn session_movie(&self, id: u64) -> u32 {
        1 + self.dice.below(Stream::SessionMovie, id, self.sizes.movies.into()) as u32
    }

    /// The inner join: none when the session names a customer or movie that does not exist.
    pub fn join(&self, session: Session) -> Option<Joined> {
        let Session { id, start_time, customer_id, movie_id } = session;
        Some(Joined { id, start_time, customer: self.customer(customer_id)?, movie: self.movie(movie_id)? })
    }
}

fn pick(words: &[&'static str], random: u64) -> &'static str {
    words[dice::scale(random, words.len() as u64) as usize]
}

#[rustfmt::skip]
const NAMES: [&str; 40] = [
    "Alexander", "Alexey", "Anastasia", "Andrey", "Anna", "Anton", "Boris", "Daria", "Denis", "Dmitry", "Ekaterina",
    "Elena", "Evgeny", "Fedor", "Galina", "Grigory", "Igor", "Irina", "Ivan", "Kirill", "Ksenia", "Larisa", "Leonid",
    "Maria", "Maxim", "Mikhail", "Nadezhda", "Natalia", "Nikita", "Nikolay", "Oleg", "Olga", "Pavel", "Polina",
    "Roman", "Sergey", "Svetlana", "Tatiana", "Victor", "Yulia",
];

#[rustfmt::skip]
const SURNAMES: [&str; 40] = [
    "Abramov", "Antonov", "Baranov", "Belov", "Bogdanov", "Chernov", "Danilov", "Egorov", "Fomin", "Frolov",
    "Gavrilov", "Gusev", "Ilyin", "Ivanov", "Kazakov", "Kiselev", "Kozlov", "Kuzmin", "Lebedev", "Makarov",
    "Medvedev", "Mironov", "Morozov", "Nikitin", "Novikov", "Orlov", "Pavlov", "Petrov", "Popov", "Romanov",
    "Semenov", "Sidorov", "Smirnov", "Sokolov", "Sorokin", "Tarasov", "Titov", "Vasiliev", "Volkov", "Zaitsev",
];

#[rustfmt::skip]
const ADJECTIVES: [&str; 32] = [
    "Ancient", "Bitter", "Black", "Blue", "Broken", "Burning", "Crimson", "Distant", "Empty", "Endless", "Fallen",
    "Frozen", "Gentle", "Golden", "Hidden", "Hollow", "Last", "Lonely", "Lost", "Midnight", "Painted", "Quiet",
    "Restless", "Scarlet", "Secret", "Silent", "Silver", "Stolen", "Strange", "Sudden", "White", "Wild",
];

#[rustfmt::skip]
const NOUNS: [&str; 40] = [
    "Bridge", "Captain", "Castle", "City", "Clock", "Comet", "Desert", "Dream", "Echo", "Empire", "Forest", "Garden",
    "Guest", "Harbor", "Horizon", "House", "Island", "Journey", "Kingdom", "Lantern", "Letter", "Machine", "Mirror",
    "Mountain", "Ocean", "Orchard", "Promise", "River", "Road", "Shadow", "Ship", "Station", "Storm", "Stranger",
    "Summer", "Tower", "Train", "Valley", "Voyage", "Winter",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_the_same_rows_and_another_gives_others() {
        let (one, same, other) =
            (Data::new(1, Sizes::FULL), Data::new(1, Sizes::FULL), Data::new(2, Sizes::FULL));
        let row = |data: Data| data.session(4_999_999).and_then(|session| data.join(session)).unwrap();
        assert_eq!(row(one), row(same));
        assert_ne!(row(one), row(other));
    }

    /// Pins the generator: a change of it would silently part two versions that share a store file.
    #[test]
    fn the_rows_of_seed_one_are_these() {
        let data = Data::new(1, Sizes::FULL);
        let joined = data.join(data.session(1).unwrap()).unwrap();
        let text = serde_json::to_string(&joined).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"id":1,"start_time":"2018-07-08T22:12:49Z","customer":{"id":474248,"name":"Svetlana","#,
                r#""surname":"Chernov","birthday":"2001-08-16","email":"svetlana.chernov.474248@example.com"},"#,
                r#""movie":{"id":5636,"name":"The Endless Dream","year":2015,"duration":10740000000000}}"#,
            )
        );
    }

    #[test]
    fn ids_outside_of_the_tables_have_no_row() {
        let data = Data::new(1, Sizes::FULL);
        assert!(data.movie(0).is_none() && data.movie(29_021).is_none() && data.movie(29_020).is_some());
        assert!(data.customer(0).is_none() && data.customer(500_001).is_none());
        assert!(data.session(0).is_none() && data.session(5_000_001).is_none());
        assert!(data.session(u64::MAX).is_none());
    }

    #[test]
    fn every_session_joins() {
        let data = Data::new(3, Sizes::FULL);
        for id in (1..=5_000_000).step_by(9_973) {
            let session = data.session(id).unwrap();
            assert_eq!(session.movie_id, data.session_movie(id));
            let joined = data.join(session).unwrap();
            assert!(joined.customer.name.len() <= 80 && joined.customer.email.len() <= 256);
        }
    }
}
