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
	Healthy               // its latest boot came to its end in time, and it stayed up
	Failed                // its latest boot failed
)

// Verdict is what became of the boots of one slave.
type Verdict struct {
	State    Health
	Failures int  // boots that failed
	Looping  bool // the latest three or more failed
}

// Judge judges the boots of one slave, oldest first. A boot may take deadline to its end, and
// its slave must stay up for minHealthy after that. What fails later is not the boot's doing.
func Judge(boots []eboot.Boot, now time.Time, deadline, minHealthy time.Duration) (v Verdict) {
	row := 0 // failures since a healthy boot
	for i := range boots {
		until := now // when this boot was over at the latest
		if i+1 < len(boots) {
			until = boots[i+1].Began
		}
		switch v.State = judge(&boots[i], now, until, deadline, minHealthy); v.State {
		case Healthy:
			row = 0
		case Failed:
			row++
			v.Failures++
		}
	}
	v.Looping = row >= loopLength
	return v
}

func judge(b *eboot.Boot, now, until time.Time, deadline, minHealthy time.Duration) Health {
	ended := b.Loaded
	if ended.IsZero() && b.Phase == eboot.BootQuiet { // it was taken over when it was up, or has nothing to say
		ended = b.Began
	}
	late := ended
	if late.IsZero() {
		late = now
	}
	switch {
	case late.Sub(b.Began) > deadline:
		return Failed
	case b.Failure != "" && (ended.IsZero() || b.FailedAt.Before(ended.Add(minHealthy))):
		return Failed
	case !ended.IsZero() && until.Sub(ended) >= minHealthy:
		return Healthy
	}
	return Pending
}
