# SPDX-License-Identifier: Apache-2.0
"""`lightning-stable study survival`: who comes through a corrupted stream, and what it costs."""
