"""QR codes in the gateway's form."""

import secrets

import segno


def pairing_code() -> str:
    """Return a new secret in WhatsApp Web's form."""
    return f"2@{secrets.token_urlsafe(24)},{secrets.token_urlsafe(16)}"


def qr_image(text: str) -> str:
    """Return the text as a QR code: a PNG image in a data URL, 6 pixels per module."""
    image: str = segno.make(text, error="l", micro=False).png_data_uri(scale=6, border=4)
    return image
