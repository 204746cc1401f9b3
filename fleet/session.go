package fleet

import (
	"slices"
	"time"

	"eboot"
)

const (
	maxMarks   = 16                         // phases of one boot that are kept
	maxMark    = 64                         // bytes of the name of one
	maxMode    = 16                         // bytes of a mode that are kept
	maxAge     = 100 * 365 * 24 * time.Hour // of a loader: more is no time
	lostWithin = time.Minute                // between the times of one boot script, as server and slave count them
)

// Opened is what a slave said when its loader, one of ours, opened a session, and the
// bundle that it opened.
type Opened struct {
	Boot     uint64 // the random number of this boot of the slave; 0: it has none
	Manifest eboot.Digest
	Bundle   eboot.Ref
	Channel  string        // of the slave, by this server
	Mode     string        // "interactive" or "embedded"
	Age      time.Duration // since the slave's loader started, as the slave counts it
	Control  bool          // the slave keeps the connection, and can be told to restart over it
	Rollout  string        // id of the rollout that brings the bundle, or empty; for a boot that is not known here
}

// Report is what a loader of ours said of its boot so far. A report that was sent again,
// perhaps to another server, adds nothing twice.
type Report struct {
	Phases   []eboot.BootMark // in the order in which init reached them
	Switches int64            // since the loader started
	Local    int64            // likewise
}

// Opened notes that the loader of ours opened a session on this connection, which belongs
// to boot o.Boot of the slave from now on. That is the boot that began on this very
// connection, or one that opened sessions with this number before, or one that lost its
// connection right after the boot script, all that on whichever server; and else one that
// began on a server that told nothing of it.
// When no pin as late as this boot is known here, it enters one and returns it, for
// other servers to know; else the zero Pin.
func (c *Connection) Opened(o Opened) eboot.Pin {
	c.placed = true
	f := c.fleet
	now := f.options.Now()
	origin := now.Add(-min(max(o.Age, 0), maxAge))
	f.mu.Lock()
	defer f.mu.Unlock()
	b := c.boot
	if b == nil || !b.continuedBy(c, o) {
		c.restart()
		b = f.sessionBoot(f.addresses[c.slave], c.erts, o, origin)
	}
	switch {
	case b == nil:
		b = f.enter(c, eboot.Boot{
			BootRecord: eboot.BootRecord{Revision: takeOver, Rollout: o.Rollout},
			Slave:      c.slave, ERTS: c.erts, Channel: o.Channel, Bundle: o.Bundle, Manifest: o.Manifest,
			Loader: eboot.LoaderEboot, Began: origin, Latest: now, Cured: o.cured(true),
		})
		b.origin, b.elsewhere = origin, true
	case b.known.Cured == nil:
		b.known.Loader, b.known.Cured, b.origin = eboot.LoaderEboot, o.cured(!f.ours(b)), origin
		b.known.Loaded = time.Time{} // the silence before was not the end
		if c.boot == b {
			f.load(b)
		}
	case c.boot != b:
		b.elsewhere = true
		if b.origin.IsZero() { // it began on another server
			b.origin = origin
		}
	}
	if b.setControl(o.Control) && c.boot == b {
		f.changed(b)
	}
	b.known.Latest = later(b.known.Latest, now) // else it would be quiet before it said a word
	if c.boot != b {
		f.carry(c, b)
	}
	pin, err := f.pins.open(eboot.Pin{Slave: c.slave, ERTS: c.erts, Manifest: o.Manifest, At: b.known.Began})
	f.warnUnpinned(c, err)
	return pin
}

func (o Opened) cured(takenOver bool) *eboot.CuredBoot {
	return &eboot.CuredBoot{Number: o.Boot, Mode: printable(o.Mode, maxMode), TakenOver: takenOver, Control: o.Control}
}

// setControl notes whether the slave can be told something now, and reports whether that is new.
func (b *boot) setControl(control bool) bool {
	if b.known.Cured == nil || b.known.Cured.Control == control {
		return false
	}
	cured := *b.known.Cured // who has a copy of the boot shares it
	cured.Control = control
	b.known.Cured = &cured
	return true
}

// continuedBy reports whether b, which c carries, is the boot of session o.
func (b *boot) continuedBy(c *Connection, o Opened) bool {
	if b.known.Manifest != o.Manifest {
		return false
	}
	if b.known.Cured == nil {
		return c.began // else it is a guess by the address
	}
	return b.known.Cured.Number == o.Boot
}

// sessionBoot returns the boot of a that session o, on a further connection, belongs to;
// nil when none is known. origin is when the slave's loader started, as the slave says.
func (f *Fleet) sessionBoot(a *address, erts string, o Opened, origin time.Time) *boot {
	var lost *boot
	for _, b := range slices.Backward(a.boots) {
		if b.known.ERTS != erts || b.known.Manifest != o.Manifest {
			continue
		}
		within := cutWithin
		if f.ours(b) { // its connection is known to be gone
			within = lostWithin
		}
		switch cured := b.known.Cured; {
		case cured != nil && cured.Number == o.Boot && o.Boot != 0:
			return b
		case cured == nil && lost == nil && len(b.carriers) == 0 && b.known.Loaded.IsZero() &&
			b.known.Began.Sub(origin).Abs() < within:
			lost = b
		}
	}
	return lost
}

// Reported notes what the loader reported. A connection without a session reports nothing.
func (c *Connection) Reported(r Report) {
	f := c.fleet
	now := f.options.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.regain(c)
	b := c.boot
	if b == nil || b.known.Cured == nil {
		return
	}
	b.known.Latest = later(b.known.Latest, now) // who reports is not quiet
	cured := *b.known.Cured                     // who has a copy of the boot shares what b.known.Cured points to
	cured.Phases = slices.Clone(cured.Phases)
	cured.Switches = max(cured.Switches, r.Switches)
	cured.Local = max(cured.Local, r.Local)
	news := b.goOn()
	for _, m := range r.Phases {
		m = eboot.BootMark{Phase: word(m.Phase, maxMark), AtMS: min(max(m.AtMS, 0), maxAge.Milliseconds())}
		ended := m.Phase == string(eboot.BootStarted)
		b.excused = b.excused || m.Phase == eboot.MarkRestarting
		room := maxMarks - len(cured.Phases)
		if room == 0 || room == 1 && !ended || slices.Contains(cured.Phases, m) { // the last place is for the end
			continue
		}
		cured.Phases = append(cured.Phases, m)
		news, b.elsewhere = true, false
		if ended && b.known.Loaded.IsZero() {
			b.known.Loaded = b.reached(m, now)
			b.known.Phase = eboot.BootStarted
			delete(f.loading, b)
		}
	}
	b.known.Cured = &cured
	switch {
	case !news:
	case b.known.Loaded.IsZero() && b.known.Phase == eboot.BootQuiet: // it was in the middle of its boot
		f.load(b)
	default:
		f.changed(b)
	}
}

// reached returns when b came to m, by the clock of this server: not before the boot and
// not after now, whatever the slave says.
func (b *boot) reached(m eboot.BootMark, now time.Time) time.Time {
	at := b.origin.Add(time.Duration(m.AtMS) * time.Millisecond)
	switch {
	case at.After(now):
		return now
	case at.Before(b.known.Began):
		return b.known.Began
	}
	return at
}
