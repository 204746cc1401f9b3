package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"eboot/bootproto"
)

const (
	maxRogues   = 64 // that are remembered: a stranger chooses its addresses
	maxWarnings = 4  // lines in which they are shown
	maxAlarms   = 16 // that are told of in one alarmPeriod; the others are counted
	alarmPeriod = 10 * time.Minute
)

// rogue is something that answers slaves and is no server of the cluster.
type rogue struct {
	bootproto.Reply // the latest
	first           time.Time
	missed          int  // looks in a row that it did not answer
	told            bool // the alarm was given
}

// rogueTable are the rogues that answer now. The zero table is empty.
type rogueTable struct {
	known    map[netip.Addr]*rogue
	dropped  int // that answered the latest look and for which there was no room
	period   time.Time
	inPeriod int // alarms since
}

// enter takes over the answers of one look, and returns the rogues that are to be told of and
// the addresses of those that are gone.
func (t *rogueTable) enter(now time.Time, strangers []bootproto.Reply, whole bool) (found []rogue, gone []netip.Addr) {
	if t.known == nil {
		t.known = map[netip.Addr]*rogue{}
	}
	if now.Sub(t.period) >= alarmPeriod {
		t.period, t.inPeriod = now, 0
	}
	for address, r := range t.known {
		answers := slices.ContainsFunc(strangers, func(s bootproto.Reply) bool { return s.From.Addr() == address })
		switch {
		case answers:
			r.missed = 0
		case whole:
			r.missed++
		}
		if r.missed >= missedLooks {
			delete(t.known, address)
			if r.told {
				gone = append(gone, address)
			}
		}
	}
	t.dropped = 0
	for _, s := range strangers {
		r := t.known[s.From.Addr()]
		if r == nil && len(t.known) >= maxRogues {
			t.dropped++
			continue
		}
		if r == nil {
			r = &rogue{first: now}
			t.known[s.From.Addr()] = r
		}
		r.Reply = s
		if !r.told && t.inPeriod < maxAlarms {
			t.inPeriod++
			r.told = true
			found = append(found, *r)
		}
	}
	return found, gone
}

// warnings has a line for each of the first rogues, and one for all others.
func (t *rogueTable) warnings() (lines []string) {
	var all []*rogue
	for _, r := range t.known {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *rogue) int {
		if c := a.first.Compare(b.first); c != 0 {
			return c
		}
		return a.From.Addr().Compare(b.From.Addr())
	})
	for _, r := range all[:min(len(all), maxWarnings)] {
		lines = append(lines, fmt.Sprintf("%s answers slaves and is no server of this cluster, since %s: a node that boots from it runs whatever it is given; find that machine and stop it",
			r.text(), clock(r.first)))
	}
	if more := len(all) - len(lines) + t.dropped; more > 0 {
		lines = append(lines, fmt.Sprintf("%d more answer slaves and are no servers of this cluster", more))
	}
	return lines
}
