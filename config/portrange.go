package config

import (
	"fmt"
	"strconv"
	"strings"

	"eboot"
)

// PortRange is a range of TCP ports, both ends included. The zero PortRange
// means any port that is free.
type PortRange struct {
	First, Last uint16
}

// MarshalText writes FIRST-LAST, one port alone, or 0.
func (p PortRange) MarshalText() ([]byte, error) {
	out := strconv.AppendUint(nil, uint64(p.First), 10)
	if p.First != p.Last {
		out = strconv.AppendUint(append(out, '-'), uint64(p.Last), 10)
	}
	return out, nil
}

// UnmarshalText reads what MarshalText writes.
func (p *PortRange) UnmarshalText(text []byte) error {
	first, last, ranged := strings.Cut(string(text), "-")
	if !ranged {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if errA != nil || errB != nil {
		return fmt.Errorf("ports are 1 to 65535: %w", eboot.ErrInvalid)
	}
	v := PortRange{First: uint16(a), Last: uint16(b)}
	if why := v.problem(); why != "" {
		return fmt.Errorf("%s: %w", why, eboot.ErrInvalid)
	}
	*p = v
	return nil
}

func (p PortRange) problem() string {
	switch {
	case p == PortRange{}:
		return ""
	case p.First == 0:
		return "port 0 cannot stand in a range"
	case p.Last < p.First:
		return fmt.Sprintf("the range ends (%d) before it begins (%d)", p.Last, p.First)
	}
	return ""
}
