package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"eboot"
	"eboot/api"
	"eboot/cluster"
	"eboot/fsm"
	"eboot/internal/peerrpc"
)

const (
	infoPatience = time.Second // for what another server says of itself
	copyPause    = 500 * time.Millisecond
	// majorityPatience is how much longer than publish.wait a publish waits for a
	// majority: without one it would be lost with a single disk.
	majorityPatience = 30 * time.Second
)

// copyRound is one publish on its way to the other servers.
type copyRound struct {
	servers []cluster.Member
	ready   map[string]bool // servers that were ready when it began: waited for
	holders map[string]bool
	latest  map[string]error // why a server does not hold it yet
}

// spread has the bundles copied to the other servers and returns when enough hold them:
// a majority of those that vote, at least minCopies, and every server that was ready
// when it began, unless publish.wait has passed. Those left over are returned as well.
// eboot.ErrTimeout: too few hold it; nothing became visible.
func (a *Agent) spread(ctx context.Context, bundles []eboot.Bundle, minCopies int) (holders []string, laggards []api.Laggard, err error) {
	round := &copyRound{
		servers: a.cluster.Status().Servers, ready: map[string]bool{},
		holders: map[string]bool{a.server: true}, latest: map[string]error{},
	}
	if len(round.servers) > 1 {
		err = a.copyAround(ctx, round, bundles, minCopies)
	}
	for _, s := range round.servers {
		switch {
		case round.holders[s.ID]:
			holders = append(holders, s.ID)
		default:
			laggards = append(laggards, api.Laggard{Server: s.ID, Address: s.Address, Reason: round.reason(s.ID)})
		}
	}
	if len(holders) == 0 {
		holders = []string{a.server} // not a member yet, or alone
	}
	return holders, laggards, err
}

func (r *copyRound) reason(id string) string {
	if err := r.latest[id]; err != nil {
		return err.Error()
	}
	return "still copying"
}

func (a *Agent) copyAround(ctx context.Context, round *copyRound, bundles []eboot.Bundle, minCopies int) error {
	// Without a quorum nothing could be made visible: that is said at once.
	if err := a.Fresh(ctx); err != nil {
		return err
	}
	for id, info := range a.infos(ctx) {
		round.ready[id] = info.Serving
	}
	type outcome struct {
		server string
		err    error // nil: it holds the bundles
	}
	outcomes := make(chan outcome)
	copying, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	for _, s := range round.servers {
		if s.ID == a.server {
			continue
		}
		group.Go(func() {
			for copying.Err() == nil {
				err := a.peers.rpc.CopyBundle(copying, s.ID, peerrpc.CopyRequest{From: a.server, Bundles: bundles, Wait: a.config.Publish.Wait})
				select {
				case outcomes <- outcome{s.ID, err}:
				case <-copying.Done():
				}
				if err == nil {
					return
				}
				select {
				case <-time.After(copyPause):
				case <-copying.Done():
				}
			}
		})
	}
	wait := time.NewTimer(a.config.Publish.Wait)
	defer wait.Stop()
	limit := time.NewTimer(a.config.Publish.Wait + majorityPatience)
	defer limit.Stop()
	look := time.NewTicker(leaderPatience)
	defer look.Stop()
	for waited := false; !round.enough(minCopies, waited); {
		select {
		case o := <-outcomes:
			round.latest[o.server] = o.err
			if o.err == nil {
				round.holders[o.server] = true
			}
		case <-wait.C:
			waited = true
			if round.majority() && len(round.holders) < minCopies {
				return fmt.Errorf("publish %s: %s; nothing is visible; publish again to go on where it stopped: %w", bundles[0].Ref(), round.text(minCopies), eboot.ErrTimeout)
			}
		case <-look.C:
			if err := a.Fresh(ctx); errors.Is(err, eboot.ErrNoLeader) {
				return err
			}
		case <-limit.C:
			return fmt.Errorf("publish %s: %s; nothing is visible; publish again to go on where it stopped: %w", bundles[0].Ref(), round.text(minCopies), eboot.ErrTimeout)
		case <-ctx.Done():
			return fmt.Errorf("publish %s: %s; nothing is visible: %w", bundles[0].Ref(), round.text(minCopies), eboot.ErrTimeout)
		}
	}
	return nil
}

// enough reports whether the bundle may become visible.
func (r *copyRound) enough(minCopies int, waited bool) bool {
	for _, s := range r.servers {
		if s.Voter && r.ready[s.ID] && !r.holders[s.ID] && !waited {
			return false
		}
	}
	return r.majority() && len(r.holders) >= minCopies
}

// majority reports whether more than half of those that vote hold the bundle.
func (r *copyRound) majority() bool {
	voters, holding := 0, 0
	for _, s := range r.servers {
		if s.Voter {
			voters++
			if r.holders[s.ID] {
				holding++
			}
		}
	}
	return holding >= voters/2+1
}

func (r *copyRound) text(minCopies int) string {
	var missing []string
	for _, s := range r.servers {
		if !r.holders[s.ID] {
			missing = append(missing, fmt.Sprintf("%s (%s): %s", s.ID, s.Address, r.reason(s.ID)))
		}
	}
	return fmt.Sprintf("%d of %d servers hold it, want %d: %s", len(r.holders), len(r.servers), max(minCopies, len(r.servers)/2+1), strings.Join(missing, "; "))
}

// infos asks every server of the cluster about itself, this one included. Those that
// do not answer in time are missing.
func (a *Agent) infos(ctx context.Context) map[string]peerrpc.ServerInfo {
	ctx, cancel := context.WithTimeout(ctx, infoPatience)
	defer cancel()
	ask := map[string]bool{}
	for _, s := range a.cluster.Status().Servers {
		ask[s.ID] = true
	}
	for _, id := range a.peers.living() {
		ask[id] = true
	}
	delete(ask, a.server)
	var mu sync.Mutex
	found := map[string]peerrpc.ServerInfo{}
	var group sync.WaitGroup
	group.Go(func() {
		own := a.Info()
		mu.Lock()
		defer mu.Unlock()
		found[a.server] = own
	})
	for id := range ask {
		group.Go(func() {
			info, err := a.peers.rpc.Info(ctx, id)
			if err != nil {
				if !errors.Is(err, eboot.ErrUnreachable) {
					a.logger.Debug("server did not say how it is", "server", id, "error", err)
				}
				return
			}
			mu.Lock()
			defer mu.Unlock()
			found[id] = info
		})
	}
	group.Wait()
	return found
}

// Info is what this server says of itself to the others.
func (a *Agent) Info() peerrpc.ServerInfo {
	raft := a.cluster.Status()
	known := a.cluster.Knowledge()
	state := a.view.State()
	readiness, serving := a.readiness(state)
	info := peerrpc.ServerInfo{
		ID: a.server, Cluster: a.clusterID(), Version: a.version, Address: known.Address, StateVersion: fsm.Version, Configuration: peerrpc.Configuration{Servers: members(raft), Leader: raft.Leader, Founding: known.Founding},
		LastIndex: raft.LastIndex, AppliedIndex: raft.AppliedIndex, StateIndex: a.machine.State().Index(), Complete: true,
		Ready: readiness.Ready, Serving: serving, Reasons: readiness.Reasons, BootAddresses: bootAddresses(a.config.Boot.Bind), Bundles: []eboot.BundleOnDisk{},
		CertificateExpires: a.certificateExpires(),
	}
	for _, b := range state.Bundles() {
		info.Bundles = append(info.Bundles, bundleOnDisk(b, a.copies.count(b)))
	}
	for b := range channelBundles(state) {
		info.Complete = info.Complete && a.copies.count(b).missing == 0
	}
	for _, w := range known.Waiting {
		info.Waiting = append(info.Waiting, peerrpc.Candidate(w))
	}
	for _, l := range a.cluster.Learning() {
		info.Learning = append(info.Learning, peerrpc.Candidate(l))
	}
	return info
}
