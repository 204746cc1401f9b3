package fleet

import (
	"time"

	"eboot"
)

// Health is how the boots of a slave are judged.
type Health int

// What a slave may be.
const (
	Pending Health = iota // it is not known yet
	Healthy               // its latest boot came to its end in time, and it stayed up; or it boots again after such a one
	Failed                // its latest boot failed
)

// Verdict is what became of the boots of one slave.
type Verdict struct {
	State    Health
	Failures int  // boots that failed
	Looping  bool // the latest three or more failed, or were followed by a failure within minutes
}

// shortLived is for how long nodes are to stay up, at most, whose life is perhaps no longer by
// design: that they are gone soon after is no sign of a loop.
const shortLived = 10 * time.Second

// newsTakes is how long what another server saw may be on its way.
const newsTakes = time.Second

// Judge judges the boots of one slave, oldest first. A boot may take deadline to its end, and
// its slave must stay up for minHealthy after that. What fails later is not the boot's doing,
// unless it does so again and again. A boot that another followed, of which nobody saw the
// end nor a failure, says nothing.
func Judge(boots []eboot.Boot, now time.Time, deadline, minHealthy time.Duration) (v Verdict) {
	row := 0         // failures since a healthy boot
	judging := false // the latest boot is not judged yet
	for i := range boots {
		b := &boots[i]
		var health Health
		if latest := i == len(boots)-1; latest {
			wasWell := v.State == Healthy
			health = judgeLatest(b, now, deadline, minHealthy)
			judging = health == Pending
			if v.State = health; health == Pending && wasWell {
				v.State = Healthy // of many slaves some always boot again
			}
		} else {
			health = judgeFormer(b, boots[i+1].Began, deadline, minHealthy)
			if health != Pending {
				v.State = health
			}
		}
		switch health {
		case Healthy:
			row = 0
		case Failed:
			row++
			v.Failures++
		}
	}
	v.Looping = row >= loopLength || minHealthy >= shortLived && crashing(boots, judging)
	return v
}

// judgeFormer judges a boot that was over, at the latest, when the next began.
func judgeFormer(b *eboot.Boot, next time.Time, deadline, minHealthy time.Duration) Health {
	end := endOf(b)
	switch {
	case failed(b, end, deadline, minHealthy):
		return Failed
	case end.IsZero() || next.Before(certainAt(b, end.Add(minHealthy))):
		return Pending // also one whose failure will be known in a moment
	}
	return Healthy
}

// certainAt is when it is known that b, which was to stay up until then, did not fail before. The
// slave may have let go of its connection earlier, or be gone.
func certainAt(b *eboot.Boot, stayed time.Time) time.Time {
	if b.EndedAt.IsZero() || !b.EndedAt.Before(stayed) {
		return stayed
	}
	return later(stayed, b.EndedAt.Add(goneAfter+newsTakes))
}

// judgeLatest judges a boot that no other followed. It is healthy when no failure can come to
// be known any more that counts.
func judgeLatest(b *eboot.Boot, now time.Time, deadline, minHealthy time.Duration) Health {
	end := endOf(b)
	if failed(b, end, deadline, minHealthy) || end.IsZero() && now.Sub(b.Began) > deadline {
		return Failed
	}
	if end.IsZero() {
		return Pending
	}
	stayed := end.Add(minHealthy)
	certain := certainAt(b, stayed)
	switch {
	case b.Failure != "" || !b.EndedAt.IsZero() && !b.EndedAt.Before(stayed): // later than counts
		return Healthy
	case b.EndedAt.IsZero(): // what others see comes late
		certain = stayed.Add(newsTakes)
	}
	if now.Before(certain) {
		return Pending
	}
	return Healthy
}

// endOf returns when b came to its end; zero: it is not known to have.
func endOf(b *eboot.Boot) time.Time {
	if b.Loaded.IsZero() && b.Phase == eboot.BootQuiet { // it was taken over when it was up, or has nothing to say
		return b.Began
	}
	return b.Loaded
}

// failed reports whether b, which came to its end at end, is known to have failed.
func failed(b *eboot.Boot, end time.Time, deadline, minHealthy time.Duration) bool {
	if end.IsZero() {
		return b.Failure != ""
	}
	return end.Sub(b.Began) > deadline || b.Failure != "" && b.FailedAt.Before(end.Add(minHealthy))
}

// crashing reports whether the slave is gone soon after each boot, be it after it was
// healthy: the latest boots failed in a short time. Those that say nothing do not count,
// nor does the very latest while it is pending: the slave is back before its failure is known.
func crashing(boots []eboot.Boot, pending bool) bool {
	var first, last time.Time
	for i, n := len(boots)-1, 0; i >= 0; i-- {
		b := &boots[i]
		if b.Failure == "" {
			if b.Loaded.IsZero() || pending && i == len(boots)-1 {
				continue
			}
			return false
		}
		if n == 0 || b.FailedAt.Before(first) {
			first = b.FailedAt
		}
		last = later(last, b.FailedAt)
		if n++; n == loopLength {
			return last.Sub(first) < loopWithin
		}
	}
	return false
}
