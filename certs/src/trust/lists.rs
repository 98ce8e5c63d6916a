//! Revocation lists (RFC 5280, section 5) that came with the roots.
//!
//! webpki parses them, and refuses what it does not understand: delta lists, indirect ones, those
//! for some reasons only, unknown critical extensions. It takes the first list in an issuer's name
//! for the issuer's, checks its signature in every handshake, and does not ask a root whether it may
//! sign lists; so the choice of the list is made here.
//!
//! Where lists are mounted, everything fails closed: each certificate of a path, the root apart,
//! needs a list of its issuer that is in time. A list past its end speaks for nobody: an authority
//! that stopped publishing cannot be told from somebody who holds its lists back.

use super::{VerifyError, issuer::SigningCertificate};
use crate::{KeyId, crypto::provider};
use parking_lot::Mutex;
use rustls::pki_types::{CertificateRevocationListDer, UnixTime};
use std::time::Duration;
use webpki::{CertRevocationList, Error, OwnedCertRevocationList};
use x509_parser::{
    extensions::{DistributionPointName, ParsedExtension},
    prelude::{CertificateRevocationList, FromDer, GeneralName, X509Certificate},
    x509::SubjectPublicKeyInfo,
};

/// Verdicts on who signed a list that are kept. Names are chosen by whoever runs an authority, so
/// there may be some; below one root there are few.
const MAX_VERDICTS: usize = 16;

/// One list, ready for use.
#[derive(Debug)]
pub(crate) struct RevocationList {
    list: CertRevocationList<'static>,
    der: CertificateRevocationListDer<'static>,
    about: About,
    /// Whether a key has signed it: looked at once a key, not once a handshake.
    signed_by: Mutex<Vec<(KeyId, bool)>>,
}

/// What a list says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct About {
    /// The key identifier of its issuer, as far as it names one.
    key: Vec<u8>,
    /// Big-endian, without leading zeros.
    number: Vec<u8>,
    this_update: Duration,
    next_update: Duration,
    scope: Scope,
}

/// For which certificates of its issuer it speaks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Scope {
    users_only: bool,
    authorities_only: bool,
    /// Only for certificates that name one of these as where their list is.
    points: Option<Vec<String>>,
}

/// A certificate of a path whose standing is asked for.
pub(super) struct Asked<'a> {
    pub(super) serial: &'a [u8],
    pub(super) issuer_name: &'a [u8],
    pub(super) is_authority: bool,
    pub(super) der: &'a [u8],
}

/// Who signed it.
pub(super) struct Issuer<'a> {
    pub(super) is: SigningCertificate,
    /// Its SubjectPublicKeyInfo.
    pub(super) spki: &'a [u8],
}

fn since_epoch(at: x509_parser::time::ASN1Time) -> Duration {
    Duration::from_secs(u64::try_from(at.timestamp()).unwrap_or(0))
}

fn uris(name: &DistributionPointName<'_>) -> Vec<String> {
    let DistributionPointName::FullName(names) = name else {
        return Vec::new();
    };
    let uri = |n: &GeneralName<'_>| match n {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    names.iter().filter_map(uri).collect()
}

impl About {
    fn of(list: &CertificateRevocationList<'_>) -> Self {
        let (mut key, mut scope) = (Vec::new(), Scope::default());
        for extension in list.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    key = id.key_identifier.as_ref().map_or(key, |k| k.0.to_vec());
                }
                ParsedExtension::IssuingDistributionPoint(point) => {
                    scope = Scope {
                        users_only: point.only_contains_user_certs,
                        authorities_only: point.only_contains_ca_certs,
                        points: point.distribution_point.as_ref().map(uris),
                    };
                }
                _ => {}
            }
        }
        Self {
            key,
            number: list.crl_number().map_or_else(Vec::new, |n| n.to_bytes_be()),
            this_update: since_epoch(list.last_update()),
            next_update: list.next_update().map_or(Duration::ZERO, since_epoch),
            scope,
        }
    }

    /// Numbers of one length are ordered as their bytes are.
    fn order(&self) -> (usize, &[u8], Duration) {
        (self.number.len(), &self.number, self.this_update)
    }
}

impl RevocationList {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, Error> {
        let list = OwnedCertRevocationList::from_der(der)?;
        let (_, parsed) = CertificateRevocationList::from_der(der).map_err(|_| Error::BadDer)?;
        Ok(Self {
            about: About::of(&parsed),
            list: list.into(),
            der: der.to_vec().into(),
            signed_by: Mutex::default(),
        })
    }

    /// Whether it is about the same certificates as another, of the same issuer.
    fn replaces(&self, other: &Self) -> bool {
        let about = |l: &Self| (l.about.key.clone(), l.about.scope.clone());
        self.list.issuer() == other.list.issuer() && about(self) == about(other)
    }

    fn is_older_than(&self, other: &Self) -> bool {
        self.about.order() < other.about.order()
    }

    /// Whether it speaks for a certificate, if its issuer signed it.
    fn covers(&self, asked: &Asked<'_>) -> bool {
        let scope = &self.about.scope;
        let kind = match asked.is_authority {
            true => !scope.users_only,
            false => !scope.authorities_only,
        };
        let place = scope.points.as_ref().is_none_or(|points| {
            let named = distribution_points(asked.der);
            named.iter().any(|p| points.contains(p))
        });
        self.list.issuer() == asked.issuer_name && kind && place
    }

    fn is_signed_by(&self, issuer: &Issuer<'_>) -> bool {
        let known = |verdicts: &Vec<(KeyId, bool)>| {
            let mut verdicts = verdicts.iter();
            verdicts.find(|v| v.0 == issuer.is.key).map(|v| v.1)
        };
        if let Some(verdict) = known(&self.signed_by.lock()) {
            return verdict;
        }
        let verdict = self.verify(issuer.spki).is_some();
        let mut verdicts = self.signed_by.lock();
        if verdicts.len() < MAX_VERDICTS {
            verdicts.push((issuer.is.key, verdict));
        }
        verdict
    }

    /// By the algorithms that certificates are verified by.
    fn verify(&self, spki: &[u8]) -> Option<()> {
        let (_, list) = CertificateRevocationList::from_der(&self.der).ok()?;
        let (_, key) = SubjectPublicKeyInfo::from_der(spki).ok()?;
        let signed = list.tbs_cert_list.as_ref();
        let signature = &list.signature_value.data;
        let public_key = &key.subject_public_key.data;
        let supported = provider().signature_verification_algorithms.all;
        supported.iter().find_map(|algorithm| {
            let same = |id: &x509_parser::x509::AlgorithmIdentifier<'_>, wanted: &[u8]| {
                x509_parser::der_parser::oid::Oid::from_der(wanted)
                    .is_ok_and(|(_, oid)| oid == id.algorithm)
            };
            let fits = same(&list.signature_algorithm, &algorithm.signature_alg_id())
                && same(&key.algorithm, &algorithm.public_key_alg_id());
            let verified = || algorithm.verify_signature(public_key, signed, signature);
            (fits && verified().is_ok()).then_some(())
        })
    }

    fn check(&self, asked: &Asked<'_>, now: UnixTime) -> Result<(), Error> {
        let (at, about) = (Duration::from_secs(now.as_secs()), &self.about);
        if at >= about.next_update || at < about.this_update {
            return Err(Error::CrlExpired {
                time: now,
                next_update: UnixTime::since_unix_epoch(about.next_update),
            });
        }
        match self.list.find_serial(asked.serial)? {
            Some(_) => Err(Error::CertRevoked),
            None => Ok(()),
        }
    }
}

/// Where a certificate says that its list is.
fn distribution_points(der: &[u8]) -> Vec<String> {
    let Ok((_, cert)) = X509Certificate::from_der(der) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for extension in cert.iter_extensions() {
        if let ParsedExtension::CRLDistributionPoints(points) = extension.parsed_extension() {
            let names = points.iter().filter_map(|p| p.distribution_point.as_ref());
            found.extend(names.flat_map(uris));
        }
    }
    found
}

/// The newest list for each issuer and scope.
#[derive(Debug, Default)]
pub(super) struct Lists(Vec<RevocationList>);

impl Lists {
    pub(super) fn new(ders: Vec<CertificateRevocationListDer<'static>>) -> Result<Self, Error> {
        let mut lists = Self::default();
        for der in ders {
            lists.add(RevocationList::parse(&der)?);
        }
        Ok(lists)
    }

    fn add(&mut self, list: RevocationList) {
        match self.0.iter_mut().find(|l| l.replaces(&list)) {
            Some(same) if same.is_older_than(&list) => *same = list,
            Some(_) => tracing::debug!("an older revocation list of an issuer is left out"),
            None => self.0.push(list),
        }
    }

    pub(super) fn ders(&self) -> impl Iterator<Item = &CertificateRevocationListDer<'static>> {
        self.0.iter().map(|l| &l.der)
    }

    /// What is offered, but for lists that are older than one that is here and still in time.
    pub(super) fn newest(
        &self,
        offered: Vec<CertificateRevocationListDer<'static>>,
        now: Duration,
    ) -> Vec<CertificateRevocationListDer<'static>> {
        let keep = |der: CertificateRevocationListDer<'static>| {
            let Ok(list) = RevocationList::parse(&der) else {
                return der;
            };
            let newer = self.0.iter().find(|own| {
                own.replaces(&list) && list.is_older_than(own) && own.about.next_update > now
            });
            newer.map_or(der, |own| {
                tracing::warn!(
                    number = crate::name::hex(&list.about.number),
                    in_use = crate::name::hex(&own.about.number),
                    "a revocation list is older than the one in use, which stays"
                );
                own.der.clone()
            })
        };
        offered.into_iter().map(keep).collect()
    }

    /// Whether a certificate of a path is still good, as far as lists were mounted at all.
    pub(super) fn check(
        &self,
        asked: &Asked<'_>,
        issuer: &Issuer<'_>,
        now: UnixTime,
    ) -> Result<(), VerifyError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut missing = Error::UnknownRevocationStatus;
        let mut found = false;
        for list in self.0.iter().filter(|l| l.covers(asked)) {
            if !list.is_signed_by(issuer) {
                missing = Error::InvalidCrlSignatureForPublicKey;
                continue;
            }
            if !issuer.is.signs_lists {
                return Err(VerifyError::Chain(Error::IssuerNotCrlSigner));
            }
            list.check(asked, now).map_err(|e| match e {
                Error::CertRevoked => VerifyError::Revoked,
                other => VerifyError::Chain(other),
            })?;
            found = true;
        }
        found.then_some(()).ok_or(VerifyError::Chain(missing))
    }
}
