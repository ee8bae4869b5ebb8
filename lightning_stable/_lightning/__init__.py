# SPDX-License-Identifier: Apache-2.0
"""The one room that touches Lightning's private attributes; one small file per need."""
