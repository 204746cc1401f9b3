package fleet

import (
	"fmt"
	"strings"
	"time"

	"eboot"
)

const (
	maxID    = 128     // bytes of an id: that of a server and a number
	maxEvent = 512     // bytes of the text of an event
	maxCount = 1 << 60 // of what is counted: sums of two do not overflow

	maxRollout = 64 // bytes of the id of a rollout
)

// checkBoot reports whether b may stand beside the boots of this server.
func checkBoot(b *eboot.Boot) error {
	if !b.Slave.Is4() {
		return fmt.Errorf("%q: is not an IPv4 address: %w", b.Slave, eboot.ErrInvalid)
	}
	if err := checkID(b.ID); err != nil {
		return err
	}
	if err := checkID(b.Server); err != nil {
		return err
	}
	if err := eboot.CheckERTS(b.ERTS); err != nil {
		return err
	}
	if err := eboot.CheckName("channel", b.Channel); err != nil {
		return err
	}
	if err := b.Bundle.Check(); err != nil {
		return err
	}
	switch b.Phase {
	case eboot.BootLoading, eboot.BootQuiet, eboot.BootStarted, eboot.BootClosed, eboot.BootFailed:
	default:
		return fmt.Errorf("phase %.20q: is none: %w", b.Phase, eboot.ErrInvalid)
	}
	switch {
	case b.Manifest.IsZero():
		return fmt.Errorf("boot %s: names no manifest: %w", b.ID, eboot.ErrInvalid)
	case b.Revision > maxCount || b.Requests < 0 || b.Requests > maxCount || b.Bytes < 0 || b.Bytes > maxCount:
		return fmt.Errorf("boot %s: counts more than there is: %w", b.ID, eboot.ErrInvalid)
	case !clean(b.Failure, maxText):
		return fmt.Errorf("boot %s: failure is no text of %d bytes: %w", b.ID, maxText, eboot.ErrInvalid)
	case len(b.Rollout) > maxRollout || strings.ContainsFunc(b.Rollout, beyondASCII):
		return fmt.Errorf("boot %s: rollout is no text of %d bytes: %w", b.ID, maxRollout, eboot.ErrInvalid)
	case b.Began.IsZero() || !encodable(b.Began) || !encodable(b.Latest) || !encodable(b.Loaded) || !encodable(b.FailedAt) || !encodable(b.EndedAt):
		return fmt.Errorf("boot %s: has no time: %w", b.ID, eboot.ErrInvalid)
	case b.Loader == eboot.LoaderStock && b.Cured == nil:
		return nil
	case b.Loader != eboot.LoaderEboot || b.Cured == nil:
		return fmt.Errorf("boot %s: is of no loader: %w", b.ID, eboot.ErrInvalid)
	}
	return checkCured(b.Cured)
}

func checkCured(c *eboot.CuredBoot) error {
	if !clean(c.Mode, maxMode) || len(c.Phases) > maxMarks || c.Switches < 0 || c.Local < 0 {
		return fmt.Errorf("boot %d of a slave: is malformed: %w", c.Number, eboot.ErrInvalid)
	}
	for _, m := range c.Phases {
		if !clean(m.Phase, maxMark) || m.AtMS < 0 || m.AtMS > maxAge.Milliseconds() {
			return fmt.Errorf("boot %d of a slave: has a malformed phase: %w", c.Number, eboot.ErrInvalid)
		}
	}
	return nil
}

// checkEvent reports whether e may stand beside the events that this server observed.
func checkEvent(e *eboot.Event) error {
	if err := checkID(e.ID); err != nil {
		return err
	}
	kind := string(e.Kind)
	noun, verb, ok := strings.Cut(kind, ".")
	if !ok || noun == "" || verb == "" || len(kind) > maxMark || strings.Trim(kind, "abcdefghijklmnopqrstuvwxyz._") != "" {
		return fmt.Errorf("event %s: kind %.20q: %w", e.ID, kind, eboot.ErrInvalid)
	}
	switch {
	case !clean(e.Text, maxEvent):
		return fmt.Errorf("event %s: has no text of %d bytes: %w", e.ID, maxEvent, eboot.ErrInvalid)
	case e.At.IsZero() || !encodable(e.At):
		return fmt.Errorf("event %s: has no time: %w", e.ID, eboot.ErrInvalid)
	case e.Index != 0:
		return fmt.Errorf("event %s: was not observed: %w", e.ID, eboot.ErrInvalid)
	case e.Slave.IsValid() && !e.Slave.Is4():
		return fmt.Errorf("event %s: %q is not an IPv4 address: %w", e.ID, e.Slave, eboot.ErrInvalid)
	case !clean(e.Server, maxID) || !clean(e.Channel, maxMark) || !clean(e.ERTS, maxERTS) || !clean(e.Rollout, maxID):
		return fmt.Errorf("event %s: is malformed: %w", e.ID, eboot.ErrInvalid)
	case !e.Bundle.IsZero():
		return e.Bundle.Check()
	}
	return nil
}

// checkID accepts what server ids and numbers are made of.
func checkID(id string) error {
	if id == "" || len(id) > maxID || strings.ContainsRune(id, ' ') || strings.ContainsFunc(id, beyondASCII) {
		return fmt.Errorf("id %.40q: want 1 to %d visible characters: %w", id, maxID, eboot.ErrInvalid)
	}
	return nil
}

// clean reports whether s is a text as printable makes them.
func clean(s string, limit int) bool {
	return len(s) <= limit && (!strings.ContainsFunc(s, beyondASCII) || printable(s, limit) == s)
}

func beyondASCII(r rune) bool { return r < ' ' || r > '~' }

// encodable reports whether a JSON text can hold t: years 0 to 9999, in any time zone.
func encodable(t time.Time) bool {
	year := t.UTC().Year()
	return year >= 1 && year <= 9998
}
