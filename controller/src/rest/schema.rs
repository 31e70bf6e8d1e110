//! The bodies of requests and answers that are this interface's own. Those of resources and records are the local socket's.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::store::Duty;

macro_rules! secrets {
    ($($(#[$doc:meta])* $name:ident;)+) => {
        $(
            $(#[$doc])*
            #[derive(Clone)]
            pub(super) struct $name(pub(super) Zeroizing<String>);

            impl<'de> Deserialize<'de> for $name {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
                }
            }
        )+
    };
}

secrets! {
    /// A password, or another text that nobody else is to see.
    Password;
    /// A one-time code or a recovery code.
    Code;
}

/// Signs in.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Login {
    /// The name of the account.
    pub(super) username: String,
    /// The password.
    #[schema(value_type = String)]
    pub(super) password: Password,
    /// The code of the authenticator, or a recovery code; needed once codes are set up.
    #[schema(value_type = Option<String>)]
    pub(super) code: Option<Code>,
}

/// Renews a session.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Refresh {
    /// The refresh token of the answer before. It is worth nothing afterwards.
    #[schema(value_type = String)]
    pub(super) refresh_token: Password,
}

/// What somebody is who signed in.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tokens {
    /// To be sent as `Authorization: Bearer TOKEN`.
    pub(super) access_token: String,
    /// `Bearer`.
    pub(super) token_type: &'static str,
    /// For how many seconds it holds.
    pub(super) expires_in: u64,
    /// Renews the session, once.
    pub(super) refresh_token: String,
    /// The session.
    #[schema(value_type = String, example = "0199f2c0-3c1e-7000-8000-000000000000")]
    pub(super) session: Uuid,
    /// When the session ends in any case.
    pub(super) session_expires_at: String,
    /// What must be done before anything else: `change_password`, `enrol_totp`.
    #[schema(value_type = Vec<String>)]
    pub(super) must_do: Vec<Duty>,
    /// After one-time codes were set up: codes that replace one of them once each. They are shown once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) recovery_codes: Vec<String>,
}

/// Who is signed in.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Me {
    /// The account.
    #[schema(value_type = String, example = "0199f2c0-3c1e-7000-8000-000000000000")]
    pub(super) id: Uuid,
    /// Its name.
    pub(super) username: String,
    /// The session.
    #[schema(value_type = String, example = "0199f2c0-3c1e-7000-8000-000000000000")]
    pub(super) session: Uuid,
    /// What it may do.
    pub(super) permissions: Vec<String>,
    /// What must be done before anything else.
    #[schema(value_type = Vec<String>)]
    pub(super) must_do: Vec<Duty>,
    /// How many recovery codes are left.
    pub(super) recovery_codes_left: u64,
}

/// Changes one's own password.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PasswordChange {
    /// The password that is to be changed.
    #[schema(value_type = String)]
    pub(super) current: Password,
    /// The new one: 12 to 256 characters, and none that is tried first.
    #[schema(value_type = String)]
    pub(super) new: Password,
}

/// What an authenticator needs.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct EnrolTotp {
    /// The secret, to be typed.
    pub(super) secret: String,
    /// The same, for a QR code.
    pub(super) uri: String,
}

/// Shows that the authenticator has the secret.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ConfirmTotp {
    /// A code of it.
    #[schema(value_type = String)]
    pub(super) code: Code,
}

/// Makes an account.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MakeAdmin {
    /// The name: lower-case letters, digits and `.-_`, starting with a letter.
    pub(crate) username: String,
    /// Where to reach them.
    #[serde(default)]
    pub(crate) email: Option<String>,
    /// What they are called.
    #[serde(default)]
    pub(crate) full_name: String,
    /// The roles.
    pub(crate) roles: Vec<String>,
}

/// A one-time password. It is shown once, and must be changed with its first use.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OneTime {
    /// The account.
    pub(crate) username: String,
    /// Its identifier.
    #[schema(value_type = String, example = "0199f2c0-3c1e-7000-8000-000000000000")]
    pub(crate) id: Uuid,
    /// The password.
    pub(crate) password: String,
    /// Until when it can be used.
    pub(crate) expires_at: String,
}

/// Changes an account. What is absent stays.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ChangeAdmin {
    /// Where to reach them; empty for nowhere.
    pub(super) email: Option<String>,
    /// What they are called.
    pub(super) full_name: Option<String>,
    /// The roles.
    pub(super) roles: Option<Vec<String>>,
}

/// Says why.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Reason {
    /// Why.
    pub(super) reason: String,
}

/// A role of the organisation's own.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PutRole {
    /// What it is for.
    pub(super) description: String,
    /// What it allows.
    pub(super) permissions: Vec<String>,
}

/// Puts another key in the place of those that sign tokens.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RotateKeys {
    /// Whether the keys before are believed to be in wrong hands: every token is void then.
    #[serde(default)]
    pub(super) compromised: bool,
}

/// Asks for a challenge.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AskChallenge {
    /// The Ed25519 key that is to be proved: 52 characters of base32.
    pub(super) public_key: String,
}

/// What is to be signed.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Challenge {
    /// To be signed: the bytes of this text after those of `horizon rest proof v1` and a zero byte.
    pub(super) challenge: String,
    /// For how many seconds it can be used.
    pub(super) expires_in: i64,
}

/// A key, and the proof that who sends it has it.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Proof {
    /// The Ed25519 key: 52 characters of base32.
    pub(super) public_key: String,
    /// The challenge that was asked for with this key.
    pub(super) challenge: String,
    /// Its signature, in base64url.
    pub(super) signature: String,
}

/// Something that tells a machine from others.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FactorOf {
    /// The factor's type, such as `hardware_fingerprint`.
    pub(super) kind: String,
    /// Its name, such as `board`.
    pub(super) name: String,
    /// Its value.
    pub(super) value: String,
}

/// Registers an appliance with a registration token.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Register {
    /// The token, as `horizon-controller token` shows it.
    #[schema(value_type = String)]
    pub(super) token: Password,
    /// The key of the appliance.
    pub(super) proof: Proof,
    /// Its host name.
    pub(super) hostname: String,
    /// The version of its software.
    pub(super) version: String,
    /// What it can do: `vpn`, `lan_emulation` and so on.
    #[serde(default)]
    pub(super) capabilities: Vec<String>,
    /// What tells its machine from others.
    #[serde(default)]
    pub(super) factors: Vec<FactorOf>,
}

/// What a registered appliance is told.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Registered {
    /// The server it is.
    #[schema(value_type = String, example = "0199f2c0-3c1e-7000-8000-000000000000")]
    pub(super) server_id: Uuid,
    /// The server's name.
    pub(super) server: String,
    /// Its namespace.
    pub(super) namespace: String,
    /// The verification secret in force, in base64url.
    pub(super) verification_secret: String,
    /// The organisation's root.
    pub(super) root: String,
    /// Where the control channel is.
    pub(super) controllers: Vec<String>,
}

/// Enrols a device with a personal key, or signs in one that is enrolled with that user's key.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Authenticate {
    /// The personal key, as the user pastes it.
    #[schema(value_type = String)]
    pub(super) personal_key: Password,
    /// The key of the device.
    pub(super) proof: Proof,
    /// The name its user knows it by.
    pub(super) name: String,
    /// The operating system.
    #[serde(default)]
    pub(super) platform: String,
    /// Its release.
    #[serde(default)]
    pub(super) os_version: String,
    /// The version of the program.
    #[serde(default)]
    pub(super) app_version: String,
    /// What tells the machine from others.
    #[serde(default)]
    pub(super) hardware_fingerprint: String,
}

/// A device that is signed in.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeviceTokens {
    /// The device.
    #[schema(value_type = String, example = "0199f2c0-3c1e-7000-8000-000000000000")]
    pub(super) device_id: Uuid,
    /// Its user.
    pub(super) user: String,
    /// To be sent as `Authorization: Bearer TOKEN`.
    pub(super) access_token: String,
    /// `Bearer`.
    pub(super) token_type: &'static str,
    /// For how many seconds it holds.
    pub(super) expires_in: u64,
}

/// A server that a device may ask for.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServerForDevice {
    /// Its name.
    pub(super) name: String,
    /// Whether a session could be granted now.
    pub(super) available: bool,
    /// Why not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) reason: String,
    /// What may be used there.
    pub(super) capabilities: Vec<String>,
    /// Where it is.
    pub(super) location: String,
    /// The networks that may be used there.
    pub(super) networks: Vec<String>,
}
