package agent

import (
	"fmt"
	"net/netip"
	"sort"
	"strings"
	"time"

	"eboot"
	"eboot/fsm"
)

// Explain walks the path that a boot of slave takes, as this server sees it.
func (a *Agent) Explain(slave netip.Addr) eboot.Explanation {
	e := &explainer{out: eboot.Explanation{Slave: slave, Boots: true}}
	state := a.view.State()
	sighting, seen := a.fleet.Sighting(slave)

	if err := a.boot.silenced(state); err != nil {
		e.fail("server", "this server answers nobody: "+err.Error(), "ask another server")
	}
	entry, ok := state.Lookup(slave)
	if !ok {
		e.fail("whitelist", fmt.Sprintf("no entry covers %s (%d entries)", slave, state.WhitelistSize()), "eboot slave allow "+slave.String())
	} else {
		e.ok("whitelist", fmt.Sprintf("entry %s decides%s", entry.Prefix, labelText(entry.Labels)))
		a.explainBundle(e, state, entry, sighting)
	}
	explainSighting(e, sighting, seen, a.roots)
	if a.files.Full(slave) {
		e.fail("limits", "a further connection of this address would pass the limits", "raise boot.limits, or look for what keeps connections open")
	}
	if entry != nil && state.ChannelOptions(entry.Channel).Live == eboot.LiveOn {
		e.note("live", fmt.Sprintf("channel %s is live: every file is of the bundle that it points to when the slave asks", entry.Channel))
	} else if pin, ok := a.fleet.Pin(slave, sighting.AskedERTS); ok {
		if b, found := state.BundleByManifest(pin.Manifest, pin.ERTS); found {
			e.note("pin", fmt.Sprintf("the latest boot began with %s at %s; files are of that bundle until it boots again", b.Ref(), clock(pin.At)))
		} else {
			e.note("pin", fmt.Sprintf("the latest boot began with %s at %s, which was removed: the slave gets no more code until it boots again", pin.Manifest.Short(), clock(pin.At)))
		}
	}
	return e.out
}

func (a *Agent) explainBundle(e *explainer, state *fsm.State, entry *eboot.WhitelistEntry, sighting eboot.Sighting) {
	channel, ok := state.Channel(entry.Channel)
	moving, rolling := state.Rollout(entry.Channel)
	rolling = rolling && !moving.Phase.Over()
	if rolling {
		explainRollout(e, state, &moving, entry, sighting.AskedERTS)
	}
	if !ok || len(channel.Bundles) == 0 && !rolling {
		e.fail("channel", fmt.Sprintf("channel %s points to no bundle", entry.Channel), fmt.Sprintf("eboot channel set %s NAME@VERSION", entry.Channel))
		return
	}
	if len(channel.Bundles) > 0 {
		e.ok("channel", fmt.Sprintf("%s, with bundles for ERTS %s", channel.Name, versionList(channel)))
	}
	if sighting.AskedERTS == "" {
		e.unknown("erts", "this server has not seen the slave ask; its ERTS version is not known")
		for b := range bootable(state) {
			if ref, ok := channel.Bundles[b.ERTS]; ok && ref == b.Ref() {
				a.explainResidence(e, b)
			}
		}
		return
	}
	bundle, ok := state.Target(entry, sighting.Slave, sighting.AskedERTS)
	if !ok {
		e.fail("erts", fmt.Sprintf("the slave asked for ERTS %s; channel %s has %s", sighting.AskedERTS, channel.Name, versionList(channel)),
			fmt.Sprintf("publish a bundle for ERTS %s and set channel %s to it, or install another ERTS on the slave", sighting.AskedERTS, channel.Name))
		return
	}
	e.ok("erts", fmt.Sprintf("the slave asked for ERTS %s", sighting.AskedERTS))
	a.explainResidence(e, bundle)
	if rank, last := a.boot.rank(state, sighting.Slave, bundle); last > 0 {
		e.note("rank", fmt.Sprintf("this server is number %d of the %d that hold the bundle and are alive; slaves choose number 1", rank+1, last+1))
	}
}

func explainRollout(e *explainer, state *fsm.State, r *eboot.Rollout, entry *eboot.WhitelistEntry, erts string) {
	what := fmt.Sprintf("channel %s moves to %s, %s at stage %s (%d of %d)", r.Channel, r.Target, r.Phase, r.Stages[r.Stage].Name, r.Stage+1, len(r.Stages))
	stage, ok := r.StageOf(e.out.Slave, entry.Labels)
	_, moves := state.RolloutBundle(r, erts)
	switch {
	case erts != "" && !moves:
		what += fmt.Sprintf("; it does not move slaves of ERTS %s, for which the bundle was not there when it began", erts)
	case !ok:
		what += "; no stage selects this slave, which follows when the rollout has succeeded"
	case stage <= r.Stage:
		what += "; this slave boots it"
	default:
		what += fmt.Sprintf("; this slave follows at stage %s", r.Stages[stage].Name)
	}
	e.note("rollout", what)
}

func (a *Agent) explainResidence(e *explainer, b eboot.Bundle) {
	what := fmt.Sprintf("%s for ERTS %s (%s)", b.Ref(), b.ERTS, b.Manifest.Short())
	r, ok := a.trees.residence(b)
	switch {
	case !ok:
		e.unknown("bundle", what+": not looked at yet")
		return
	case !r.complete():
		e.fail("bundle", what+": "+r.problem, fmt.Sprintf("eboot bundle verify %s, then publish it again to heal it", b.Ref()))
		return
	}
	if err := a.trust.serves(b); err != nil {
		e.fail("signatures", err.Error(), fmt.Sprintf("eboot bundle sign %s --key FILE, with a key that this server trusts", b.Ref()))
		return
	}
	if signers, _ := a.trust.Check(b); len(signers) > 0 {
		e.ok("signatures", fmt.Sprintf("%s is signed by %s", b.Ref(), keyList(signers)))
	}
	e.ok("bundle", fmt.Sprintf("%s: all %d blobs are on this server; boot script %s", what, r.blobs, b.BootScript))
	if port, ok := a.listeners.port(b.ERTS); ok {
		e.ok("listener", fmt.Sprintf("TCP port %d serves ERTS %s", port, b.ERTS))
	} else {
		e.fail("listener", fmt.Sprintf("no TCP port is open for ERTS %s", b.ERTS), "widen boot.tcp_ports; the log says why the port could not be opened")
	}
}

func explainSighting(e *explainer, s eboot.Sighting, seen bool, roots []string) {
	if !seen || s.AskedAt.IsZero() {
		e.unknown("discovery", "this server has not heard a discovery request of this address; check -hosts, the network and UDP port 4368")
	} else if s.Answered {
		e.note("discovery", fmt.Sprintf("asked at %s and was answered", clock(s.AskedAt)))
	} else {
		// What was true then need not be true now.
		e.note("discovery", fmt.Sprintf("asked at %s and got silence: %s", clock(s.AskedAt), s.Refusal))
	}
	switch outside := fmt.Sprintf("the slave asked for %q, which no root covers (%s)", s.UncoveredPath, strings.Join(roots, ", ")); {
	case s.UncoveredPath == "":
	case strings.HasSuffix(s.UncoveredPath, ".boot") && s.LatestRequest == "get "+s.UncoveredPath:
		e.fail("roots", outside, "add the slave's ROOTDIR to boot.roots, or set ROOTDIR on the slave to one of them")
	default: // -pa, ERL_LIBS, a home directory: a slave boots without them
		e.note("roots", outside+"; there is nothing there for it")
	}
	if !s.LatestAt.IsZero() {
		e.note("latest", fmt.Sprintf("%s at %s, %d connections open", s.LatestRequest, clock(s.LatestAt), s.Connections))
	}
}

// explainer collects steps; the first failure gives the advice.
type explainer struct{ out eboot.Explanation }

func (e *explainer) add(step string, result eboot.StepResult, detail string) {
	e.out.Steps = append(e.out.Steps, eboot.ExplainStep{Step: step, Result: result, Detail: detail})
}

func (e *explainer) ok(step, detail string)      { e.add(step, eboot.StepOK, detail) }
func (e *explainer) unknown(step, detail string) { e.add(step, eboot.StepUnknown, detail) }
func (e *explainer) note(step, detail string)    { e.add(step, eboot.StepNote, detail) }

func (e *explainer) fail(step, detail, advice string) {
	e.add(step, eboot.StepFailed, detail)
	e.out.Boots = false
	if e.out.Advice == "" {
		e.out.Advice = advice
	}
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

func versionList(c eboot.Channel) string {
	versions := make([]string, 0, len(c.Bundles))
	for erts, ref := range c.Bundles {
		versions = append(versions, fmt.Sprintf("%s (%s)", erts, ref))
	}
	sort.Strings(versions)
	return strings.Join(versions, ", ")
}

func keyList(keys []eboot.KeyID) string {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.String()
	}
	return "key " + strings.Join(names, ", ")
}

func labelText(labels map[string]string) string {
	if len(labels) == 0 {
		return ""
	}
	pairs := make([]string, 0, len(labels))
	for k, v := range labels {
		pairs = append(pairs, k+"="+v)
	}
	sort.Strings(pairs)
	return ", labels " + strings.Join(pairs, " ")
}
