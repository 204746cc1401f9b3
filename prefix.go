package eboot

import (
	"fmt"
	"net/netip"
	"strings"
)

// DefaultChannel is the channel of a whitelist entry that names none.
const DefaultChannel = "stable"

// WhitelistEntry lets the addresses of one prefix boot. Of several entries that
// cover an address, the one with the longest prefix decides alone.
type WhitelistEntry struct {
	Prefix  netip.Prefix      `json:"prefix"`
	Channel string            `json:"channel"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// ParsePrefix reads an IPv4 address (a host, /32) or an IPv4 CIDR. EBOOT exists
// on IPv4 only, so IPv6 is ErrInvalid; so is a CIDR with host bits set, since
// either reading of it would surprise somebody.
func ParsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, err
		}
		return netip.PrefixFrom(a, 32), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("prefix %q: want an IPv4 address or CIDR such as 10.1.0.0/16: %w", abbreviate(s), ErrInvalid)
	}
	if err := CheckPrefix(p); err != nil {
		return netip.Prefix{}, err
	}
	return p, nil
}

// CheckPrefix reports whether p may stand in a whitelist entry.
func CheckPrefix(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return fmt.Errorf("prefix %q: not valid: %w", p, ErrInvalid)
	case !p.Addr().Is4():
		return fmt.Errorf("prefix %q: EBOOT works over IPv4 only: %w", p, ErrInvalid)
	case p.Masked() != p:
		return fmt.Errorf("prefix %q: has host bits set; write %s for the network or %s for the host: %w", p, p.Masked(), p.Addr(), ErrInvalid)
	}
	return nil
}

// ParseAddr reads one IPv4 address.
func ParseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("address %q: want an IPv4 address such as 10.1.2.3: %w", abbreviate(s), ErrInvalid)
	}
	if a = a.Unmap(); !a.Is4() {
		return netip.Addr{}, fmt.Errorf("address %q: EBOOT works over IPv4 only: %w", abbreviate(s), ErrInvalid)
	}
	return a, nil
}

// CheckLabels reports whether labels may stand in a whitelist entry: keys are
// names (CheckName), values up to 128 printable bytes, at most 32 of them.
func CheckLabels(labels map[string]string) error {
	if len(labels) > 32 {
		return fmt.Errorf("labels: %d of them, at most 32: %w", len(labels), ErrTooLarge)
	}
	for k, v := range labels {
		if err := CheckName("label", k); err != nil {
			return err
		}
		if len(v) > 128 || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fmt.Errorf("label %s: value %q: want up to 128 printable characters: %w", k, abbreviate(v), ErrInvalid)
		}
	}
	return nil
}
