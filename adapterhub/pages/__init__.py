"""Pages in HTML about adapters, which a registry and `adapt ui` serve, each from its own data.

    values      what each page shows            source     what a home answers: one method a page
    views       one file a page                 page       the form of a page, and the request that it gets
    templates   how each value looks            site       routes, headers, cookies and errors around all pages
    wire        HTTP below an application: slow clients, and requests that have one reading

Where the values come from belongs to a home: `adapterhub_registry.pages`, or the local library.
"""
