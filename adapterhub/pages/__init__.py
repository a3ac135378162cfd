"""Pages in HTML about adapters, which a registry and `adapt ui` serve, each from its own data.

    values      what each page shows            page       the form of a page, and the request that it gets
    local_values  those that only `adapt ui` has
    templates   how each value looks            site       routes, headers, cookies and errors around all pages
    figures     from weights to drawings        wire       HTTP below an application: slow clients, one reading

A home lists its pages, each with the function that shows it: `adapterhub_registry.pages.home` those of a registry,
`adapterhub.api.pages.serving` those of a library.
"""
