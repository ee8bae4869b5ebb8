# SPDX-License-Identifier: Apache-2.0
"""What a range test is made of: the rates and what is read off their losses, the steps, the table and the picture."""
