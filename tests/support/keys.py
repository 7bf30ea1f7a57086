"""Keys and certificates for signatures, made anew for a test."""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def make_key(folder, name="key", curve=None):
    """Write a private key and its public key, and return both files."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(private_bytes(key))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def private_bytes(key, password=None):
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def make_certificate(folder, name, issuer=None):
    """Write a key and a certificate, its own or an authority's if `issuer` is given, and return files and objects."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    authority, signing_key = (issuer[2].subject, issuer[3]) if issuer else (subject, key)
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=authority, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, issuer is None, issuer is None, False, False), critical=True
        )
        .sign(signing_key, hashes.SHA256())
    )
    private, public = folder / f"{name}.pem", folder / f"{name}.crt"
    private.write_bytes(private_bytes(key))
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return private, public, certificate, key
