package agent

import "time"

// registerMetrics names every number this server exports. Each is read when it
// is asked for; nothing counts twice.
func (a *Agent) registerMetrics() {
	counter := func(name, help string, read func() uint64) {
		a.metrics.Counter(name, help, func() float64 { return float64(read()) })
	}
	gauge := func(name, help string, read func() float64) { a.metrics.Gauge(name, help, read) }

	counter("eboot_discovery_requests_total", "Well-formed discovery requests.", func() uint64 { return a.discovery.Stats().Requests })
	counter("eboot_discovery_answers_total", "Discovery answers sent.", func() uint64 { return a.discovery.Stats().Answers })
	counter("eboot_discovery_refused_total", "Discovery requests met with silence because the slave cannot be served.", func() uint64 { return a.discovery.Stats().Refused })
	counter("eboot_discovery_malformed_total", "Datagrams that are no discovery request.", func() uint64 { return a.discovery.Stats().Malformed })
	counter("eboot_discovery_dropped_total", "Datagrams to the discovery port that the kernel dropped: no requests, or the socket's buffer was full.", func() uint64 { return a.discovery.Stats().Dropped })
	counter("eboot_discovery_limited_total", "Discovery requests not answered because of a rate limit.", func() uint64 { return a.discovery.Stats().Limited })

	gauge("eboot_file_connections", "Connections of slaves that are open.", func() float64 { return float64(a.files.Stats().Connections) })
	counter("eboot_file_connections_total", "Connections of slaves accepted.", func() uint64 { return a.files.Stats().Accepted })
	counter("eboot_file_connections_rejected_total", "Connections closed because of a limit.", func() uint64 { return a.files.Stats().Rejected })
	counter("eboot_file_connections_displaced_total", "Connections that did nothing, closed to make room for others.", func() uint64 { return a.files.Stats().Displaced })
	counter("eboot_file_connections_denied_total", "Connections closed because the slave is not allowed.", func() uint64 { return a.files.Stats().Denied })
	counter("eboot_file_requests_total", "Requests of slaves.", func() uint64 { return a.files.Stats().Requests })
	counter("eboot_file_errors_total", "Requests answered with an error, such as enoent.", func() uint64 { return a.files.Stats().Errors })
	counter("eboot_session_opens_total", "Sessions opened by loaders of ours.", func() uint64 { return a.files.Stats().Opens })
	counter("eboot_session_files_total", "Files sent to loaders of ours, several at a request.", func() uint64 { return a.files.Stats().Fetched })
	counter("eboot_session_keep_alives_total", "Empty frames sent to loaders of ours that waited.", func() uint64 { return a.files.Stats().KeepAlives })
	counter("eboot_file_malformed_total", "Frames that are too long or no term.", func() uint64 { return a.files.Stats().Malformed })
	counter("eboot_file_timeouts_total", "Connections of slaves ended by a timeout.", func() uint64 { return a.files.Stats().Timeouts })
	counter("eboot_file_sent_bytes_total", "Bytes sent to slaves.", func() uint64 { return a.files.Stats().BytesSent })

	counter("eboot_discovery_without_bundle_total", "Discovery requests of whitelisted slaves for whose ERTS version their channel has no bundle.", a.boot.without.Load)
	gauge("eboot_rollouts_active", "Rollouts that are not over.", func() float64 { return float64(len(activeRollouts(a.view.State()))) })
	gauge("eboot_slaves_seen", "Addresses remembered.", func() float64 { return float64(a.fleet.Stats().Addresses) })
	gauge("eboot_boots_loading", "Boots under way.", func() float64 { return float64(a.fleet.Stats().Loading) })
	counter("eboot_boots_total", "Boots begun.", func() uint64 { return a.fleet.Stats().Begun })

	gauge("eboot_ready", "1 when this server can boot every slave it should.", func() float64 { return number(a.Readiness().Ready) })
	gauge("eboot_blobs", "Blobs on this disk.", func() float64 { return float64(a.store.Summary().Blobs) })
	gauge("eboot_blobs_bytes", "Their sizes.", func() float64 { return float64(a.store.Summary().Bytes) })
	gauge("eboot_blobs_damaged", "Blobs found damaged or missing and not healed.", func() float64 { return float64(len(a.store.Damaged())) })
	gauge("eboot_blobs_missing", "Blobs of bundles that channels point to, not on this disk.", func() float64 { return float64(a.missingBlobs()) })
	gauge("eboot_store_free_bytes", "Free space of the file system the blobs are on.", func() float64 { return float64(a.store.Summary().FreeBytes) })

	gauge("eboot_rogue_responders", "Addresses on the networks of slaves that answer discovery and are no servers of the cluster.", func() float64 { return float64(a.watch.count()) })
	gauge("eboot_state_age_seconds", "Time since the cluster confirmed that what this server serves is the newest, or since its start.", func() float64 { return a.boot.freshness.age().Seconds() })
	gauge("eboot_generation", "Number that rises with every change of what slaves may boot.", func() float64 { return float64(a.view.State().Generation()) })
	gauge("eboot_whitelist_entries", "Entries of the whitelist.", func() float64 { return float64(a.view.State().WhitelistSize()) })
	gauge("eboot_applied_index", "Latest log entry that was applied.", func() float64 { return float64(a.machine.State().Index()) })
	gauge("eboot_serving_cache_lag", "Log entries that the serving cache on disk is behind.", func() float64 { return float64(a.cacheLag()) })
	if c := a.secrets.credentials; c != nil {
		gauge("eboot_certificate_expiry_seconds", "Time until this server's certificate expires; negative: since it has.", func() float64 { return c.Expires().Sub(a.now()).Seconds() })
	}
	counter("eboot_api_refused_total", "Requests to the API of nobody known, or of somebody who may not.", func() uint64 { return a.admin.Refused() })
	gauge("eboot_uptime_seconds", "Time since this server started.", func() float64 { return time.Since(a.startedAt).Seconds() })
}

func (a *Agent) missingBlobs() int {
	missing := 0
	for b := range channelBundles(a.view.State()) {
		if r, ok := a.trees.residence(b); ok {
			missing += r.missing
		}
	}
	return missing
}

func (a *Agent) cacheLag() uint64 {
	if now, written := a.view.State().Index(), a.cache.WrittenIndex(); now > written {
		return now - written
	}
	return 0
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
