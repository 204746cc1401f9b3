package fleet

import (
	"fmt"
	"slices"
	"time"

	"eboot"
)

const (
	goneAfter   = 3 * time.Second  // without a connection anywhere: the slave is gone
	unusedAfter = 55 * time.Second // both loaders let go after 60 s without use, and not earlier
	stuckAfter  = 60 * time.Second // without a request in mid-boot
	earlyWithin = 10 * time.Minute // of the end of its boot: a node that is gone later is none of the boot's doing

	loopLength = 3 // failed boots in a row
	loopWithin = 5 * time.Minute

	stuckText = "stuck: nothing asked for 60s"
)

// watchGone decides whether the end of b, which no connection carries any more, looks like a
// failure. That is known after a while: the slave may have changed its server.
func (f *Fleet) watchGone(b *boot, bySlave bool) {
	if !bySlave {
		b.excused = true
	}
	if b.excused || b.known.Failure != "" {
		return
	}
	now := b.known.EndedAt
	unused := now.Sub(b.known.Latest) >= unusedAfter && (b.known.Cured == nil || !b.known.Cured.Control)
	switch {
	case b.known.Loaded.IsZero():
		if b.known.Phase != eboot.BootLoading { // it was taken over, and is not known to have been in mid-boot
			return
		}
	case unused || now.Sub(b.known.Loaded) >= earlyWithin:
		return
	}
	b.goneAt, b.againAt = now, time.Time{}
	f.gone[b] = struct{}{}
	f.wakeRun()
}

// checkGone finds the slaves that have not come back.
func (f *Fleet) checkGone() {
	now := f.options.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	for b := range f.gone {
		if now.Sub(b.goneAt) < goneAfter {
			continue
		}
		text := "the node was gone " + b.since(b.goneAt)
		switch {
		case !b.againAt.IsZero():
			text = "booted again " + b.since(b.againAt)
		case b.known.Loaded.IsZero() && b.goneAt.Sub(b.known.Latest) >= unusedAfter:
			text = stuckText // and then let go, as loaders do
		}
		f.fail(b, b.goneAt, text)
	}
}

// again finds the boot that came to a bad end as it seems because its slave booted again: next is
// the new one. It may still come back, when that was another slave of the address.
func (f *Fleet) again(next *boot) {
	if len(f.gone) == 0 {
		return
	}
	for _, b := range slices.Backward(f.addresses[next.known.Slave].boots) {
		_, gone := f.gone[b]
		if gone && b != next && b.known.ERTS == next.known.ERTS && next.known.Began.After(b.known.Latest) {
			b.againAt = next.known.Began
			return
		}
	}
}

// since says when something happened to b.
func (b *boot) since(at time.Time) string {
	if b.known.Loaded.IsZero() {
		return brief(at.Sub(b.known.Began)) + " into its boot"
	}
	return brief(at.Sub(b.known.Loaded)) + " after its boot"
}

// brief is d as people want it: "2.1s", "34s", "2m3s".
func brief(d time.Duration) string {
	if d < 10*time.Second {
		return max(d, 0).Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// fail notes the failure of b, which is ours.
func (f *Fleet) fail(b *boot, at time.Time, text string) {
	delete(f.gone, b)
	b.known.Failure, b.known.FailedAt, b.known.Phase = text, at, eboot.BootFailed
	f.changed(b)
	if b.announced {
		return
	}
	b.announced = true
	f.failed++
	event := eboot.Event{
		Kind: eboot.EventBootFailed, Slave: b.known.Slave, Channel: b.known.Channel, Bundle: b.known.Bundle, ERTS: b.known.ERTS,
		Text: fmt.Sprintf("%s: boot of %s failed: %s", b.known.Slave, b.known.Bundle, text),
	}
	f.observe(event)
	if n := f.addresses[b.known.Slave].looping(b); n > 0 {
		event.Kind = eboot.EventBootLooping
		event.Text = fmt.Sprintf("%s: boots again and again: its latest %d boots failed, now of %s: %s", b.known.Slave, n, b.known.Bundle, text)
		f.observe(event)
	}
}

// looping returns how many boots failed in a row, up to the one that was just found to have, when
// their slave is found to boot again and again just now; else 0. That slave is back long since.
func (a *address) looping(latest *boot) int {
	var failed []time.Time // latest boot first
	for _, b := range slices.Backward(a.boots) {
		if b.known.ERTS != latest.known.ERTS || b.known.Began.After(latest.known.Began) {
			continue
		}
		if b.known.Failure != "" {
			failed = append(failed, b.known.FailedAt)
		} else if !b.known.Loaded.IsZero() { // a boot that did not fail, and is not under way
			break
		}
	}
	quick := func(latest int) bool {
		first := latest + loopLength - 1
		return first < len(failed) && failed[latest].Sub(failed[first]) < loopWithin
	}
	if !quick(0) {
		return 0
	}
	for i := range failed[1:] {
		if quick(i + 1) {
			return 0 // that was found before
		}
	}
	return len(failed)
}

// goOn takes the failure of b back, which is carried, and reports whether there was one.
func (b *boot) goOn() bool {
	if b.known.Failure == "" {
		return false
	}
	b.known.Failure, b.known.FailedAt, b.known.Phase = "", time.Time{}, eboot.BootLoading
	return true
}
